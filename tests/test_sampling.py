"""The plan of batches: nothing lost or repeated, and every place reached directly."""

import numpy as np
import pytest

from mrcnn_jax.data.sampling import EvalPlan, TrainPlan, augmentation_rng

MEMBERS = (np.arange(0, 17), np.arange(17, 20), np.arange(20, 20), np.arange(20, 31))


@pytest.mark.parametrize("batch_size", [1, 4, 8, 40])
def test_every_epoch_holds_every_image_once(batch_size):
    plan = TrainPlan(MEMBERS, batch_size, seed=3)
    # Up to the end of the sixth epoch: within an epoch the batches are shuffled.
    steps = next(step for step in range(1000) if plan.epoch_of(step) >= 6)
    seen = [image for step in range(steps) for image in plan.draw(step).images]
    assert len(set(seen)) == len(seen) == steps * batch_size
    for bucket, indices in enumerate(MEMBERS):
        drawn = sorted(epoch for index, epoch in seen if index in indices)
        # Epochs 0 .. e - 1 are complete, and only epoch e is under way.
        whole = len(drawn) // max(len(indices), 1)
        assert drawn == sorted(
            [e for e in range(whole) for _ in indices] + [whole] * (len(drawn) - whole * len(indices))
        )
        for step in range(steps):
            draw = plan.draw(step)
            assert draw.bucket != bucket or all(index in indices for index, _ in draw.images)


def test_epoch_of_counts_completed_batches():
    plan = TrainPlan(MEMBERS, 4, seed=0)
    epochs = [plan.epoch_of(step) for step in range(80)]
    assert epochs == sorted(epochs)
    assert epochs[0] == 0
    # 31 images: 4 + 0 + 2 full batches in the first epoch.
    assert epochs.count(0) == 6
    assert abs(epochs[-1] - 80 * 4 // 31) <= 1


def test_order_depends_on_seed_and_epoch():
    members = (np.arange(64),)
    first = TrainPlan(members, 64, seed=0)
    assert first.draw(0) == TrainPlan(members, 64, seed=0).draw(0)
    assert first.draw(0) != TrainPlan(members, 64, seed=1).draw(0)
    assert [i for i, _ in first.draw(0).images] != [i for i, _ in first.draw(1).images]


def test_buckets_are_mixed():
    plan = TrainPlan((np.arange(50), np.arange(50, 100)), 2, seed=0)
    buckets = [plan.draw(step).bucket for step in range(50)]
    assert 10 < np.count_nonzero(np.diff(buckets)) < 40


def test_eval_plan_visits_everything_once_in_order():
    plan = EvalPlan(MEMBERS, 4)
    draws = [plan.draw(step) for step in range(len(plan))]
    assert [index for draw in draws for index, _ in draw.images] == list(range(31))
    assert [len(draw.images) for draw in draws] == [4, 4, 4, 4, 1, 3, 4, 4, 3]
    with pytest.raises(IndexError):
        plan.draw(len(plan))


def test_augmentation_rng_is_the_image_s_own():
    draws = {augmentation_rng(*key).random() for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 10**6)]}
    assert len(draws) == 5
    assert augmentation_rng(5, 6, 7).random() == augmentation_rng(5, 6, 7).random()
