"""Sampling: exact counts, fair draws, fixed slots, and nothing that depends on padding."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops.anchors import cell_anchors, grid_anchors
from mrcnn_jax.ops.boxes import encode
from mrcnn_jax.ops.match import Matches, match
from mrcnn_jax.ops.sample import random_subset, sample_anchors, sample_rois
from mrcnn_jax.types import GroundTruth, Proposals

GOLDEN = np.load(Path(__file__).parent / "golden" / "ops_geometry_training.npz")
KEY = jax.random.key(0)


compiled = jax.jit(sample_rois, static_argnames=("num", "positive_fraction", "iou", "low", "append_gt", "crowd_ignore"))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def candidates(num_positive, num_negative, num_neither, seed=0):
    """Matches in random order."""
    kind = np.random.default_rng(seed).permutation(np.repeat([1, 0, -1], [num_positive, num_negative, num_neither]))
    zeros = jnp.zeros(len(kind))
    return Matches(gt=zeros.astype(int), iou=zeros, positive=jnp.asarray(kind == 1), negative=jnp.asarray(kind == 0))


def scene(seed=0, slots=12, objects=4, crowd=()):
    """Ground truth, and 60 proposals of which about a third overlap an object well and 50 are valid."""
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 80, (60, 2)), rng.uniform(10, 40, (60, 2))
    boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
    gt = np.zeros((slots, 4), np.float32)
    gt[:objects] = boxes[:objects]
    boxes[:20] = boxes[rng.integers(0, 4, 20)] + rng.normal(0, 1, (20, 4))
    valid, row = rng.permutation(60) < 50, np.arange(slots)
    truth = GroundTruth(
        boxes=gt,
        classes=np.where(row < objects, 3 + row, 0).astype(np.int32),
        valid=row < objects,
        crowd=np.isin(row, crowd),
    )
    return Proposals(boxes=boxes, scores=np.zeros(60, np.float32), valid=valid), truth


def draw(key, proposals, gt, **settings):
    return compiled(key, proposals, gt, **{"num": 32, **settings})


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(("k", "limit"), [(0, None), (5, None), (40, None), (100, None), (40, 7), (40, 0), (5, 90)])
def test_subset_has_the_exact_size(key, k, limit):
    mask = jnp.asarray(np.random.default_rng(0).random(70) < 0.6)
    chosen = jax.jit(random_subset, static_argnums=2)(key, mask, k, None if limit is None else jnp.asarray(limit))
    assert not np.any(chosen & ~mask)
    assert int(chosen.sum()) == min(k, int(mask.sum()), k if limit is None else limit)


def test_subset_without_key_is_the_first():
    mask = jnp.asarray([False, True, True, False, True, True])
    np.testing.assert_array_equal(np.flatnonzero(random_subset(None, mask, 3)), [1, 2, 4])


def test_subset_is_uniform():
    mask = jnp.asarray(np.arange(40) % 2 == 0)
    draws = jax.jit(jax.vmap(lambda key: random_subset(key, mask, 5)))(jax.random.split(KEY, 8000))
    assert (draws.sum(axis=1) == 5).all()
    share = np.asarray(draws[:, mask]).mean(axis=0)
    # Five standard deviations of a share of 1/4 in 8000 draws.
    np.testing.assert_allclose(share, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / 8000))
    pairs = np.asarray(draws[:, mask], float).T @ np.asarray(draws[:, mask], float) / 8000
    np.testing.assert_allclose(pairs[np.triu_indices(20, 1)], 5 * 4 / (20 * 19), atol=0.015)


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(
    ("have", "expected"),
    [
        ((50, 100, 9), (16, 16)),
        ((3, 100, 9), (3, 29)),
        ((50, 4, 9), (16, 4)),
        ((0, 100, 9), (0, 32)),
        ((50, 0, 9), (16, 0)),
    ],
)
def test_anchor_counts(key, have, expected):
    matches = candidates(*have)
    positive, negative = jax.jit(lambda key, matches: sample_anchors(key, matches, num=32))(key, matches)
    assert (int(positive.sum()), int(negative.sum())) == expected
    assert not np.any(positive & ~matches.positive)
    assert not np.any(negative & ~matches.negative)


def test_roi_slots():
    proposals, gt = scene()
    for key in (None, KEY, jax.random.key(5)):
        samples = draw(key, proposals, gt)
        count = int(samples.positive.sum())
        assert 0 < count <= 8
        assert samples.positive[:count].all()
        assert samples.valid.all()
        assert samples.boxes.shape == (32, 4)
        np.testing.assert_array_equal(samples.classes, np.where(samples.positive, 3 + np.asarray(samples.gt), 0))


def test_rois_without_key_come_in_order():
    """Proposals in their order, then the objects: what the libraries do when randperm is the identity."""
    proposals, gt = scene()
    samples = draw(None, proposals, gt, num=256, positive_fraction=1.0)
    everything = np.concatenate([proposals.boxes, gt.boxes])
    present = np.concatenate([proposals.valid, gt.valid])
    corner = np.maximum(everything[:, None, :2], gt.boxes[None, :4, :2])
    side = np.maximum(np.minimum(everything[:, None, 2:], gt.boxes[None, :4, 2:]) - corner, 0)

    def area(boxes):
        return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

    common = side.prod(axis=-1)
    iou = common / (area(everything)[:, None] + area(gt.boxes[:4])[None] - common)
    positive = present & (iou.max(axis=1) >= 0.5)
    order = np.concatenate([np.flatnonzero(positive), np.flatnonzero(present & ~positive)])
    np.testing.assert_array_equal(samples.valid, np.arange(256) < len(order))
    np.testing.assert_array_equal(samples.boxes[: len(order)], everything[order])
    np.testing.assert_array_equal(samples.gt[: positive.sum()], iou[positive].argmax(axis=1))


def training_image(library):
    """Anchors, proposals and ground truth of the recorded step, with slots to spare."""
    canvas, shapes = (256, 352), [(64, 88), (32, 44), (16, 22), (8, 11), (4, 6)]
    torchvision = library == "tv"
    anchors = [
        grid_anchors(
            cell_anchors((2**level,), (0.5, 1.0, 2.0), torchvision),
            shape,
            (canvas[0] // shape[0], canvas[1] // shape[1]) if torchvision else (2 ** (level - 3),) * 2,
        )
        for level, shape in enumerate(shapes, start=5)
    ]
    proposals, boxes, classes = (GOLDEN[f"{library}.{key}"] for key in ("proposals", "gt_boxes", "gt_classes"))
    valid = np.arange(9) < len(boxes)
    spare = (0, 9 - len(boxes))
    gt = GroundTruth(boxes=np.pad(boxes, (spare, (0, 0))), classes=np.pad(classes, spare), valid=valid, crowd=~valid)
    n = len(proposals)
    return np.concatenate(anchors), Proposals(proposals, np.zeros(n, np.float32), np.ones(n, bool)), gt


@pytest.mark.parametrize("library", ["tv", "d2"])
def test_training_step_of_reference(library):
    """The very anchors and RoIs that the libraries trained on, and their targets."""
    anchors, proposals, gt = training_image(library)
    matches = jax.jit(lambda boxes, gt: match(boxes, gt, high=0.7, low=0.3, low_quality=True))(anchors, gt)
    positive, negative = jax.jit(lambda matches: sample_anchors(None, matches))(matches)
    np.testing.assert_array_equal(
        np.where(positive, 1, np.where(negative, 0, -1)), GOLDEN[f"{library}.sampled_anchors"]
    )

    samples = draw(None, proposals, gt, num=512)
    rois, classes = GOLDEN[f"{library}.rois"], GOLDEN[f"{library}.roi_classes"]
    # torchvision puts a sample back into the order of the candidates; a stable sort brings its positives to the front.
    order = np.argsort(classes == 0, kind="stable")
    np.testing.assert_array_equal(samples.boxes, rois[order])
    np.testing.assert_array_equal(samples.classes, classes[order])
    if library == "tv":
        labels = np.where(matches.positive, 1, np.where(matches.negative, 0, -1))
        np.testing.assert_array_equal(labels, GOLDEN["tv.anchor_labels"])
        targets = encode(jnp.asarray(gt.boxes)[samples.gt], samples.boxes, (10, 10, 5, 5))[samples.positive]
        np.testing.assert_allclose(
            targets, GOLDEN["tv.regression_targets"][order][: len(targets)], rtol=1e-5, atol=1e-6
        )


def test_objects_are_appended_on_request_without_crowds():
    proposals, gt = scene(crowd=[1])
    nothing = proposals.replace(valid=np.zeros(60, bool))
    samples = draw(None, nothing, gt, positive_fraction=1.0)
    np.testing.assert_array_equal(samples.boxes[:3], gt.boxes[[0, 2, 3]])
    np.testing.assert_array_equal(samples.gt[:3], [0, 2, 3])
    assert int(samples.valid.sum()) == int(samples.positive.sum()) == 3
    assert not draw(None, nothing, gt, append_gt=False).valid.any()


def test_crowd_inside_is_left_out():
    proposals, gt = scene()
    region = np.asarray([[-100, -100, 300, 300]], np.float32)
    crowded = gt.replace(boxes=np.where(np.arange(12)[:, None] == 4, region, gt.boxes), valid=np.arange(12) < 5)
    crowded = crowded.replace(crowd=np.arange(12) == 4)
    samples = draw(KEY, proposals, crowded)
    np.testing.assert_array_equal(samples.valid, samples.positive)
    assert samples.positive.any()


def test_background_may_have_a_lower_bound():
    proposals, gt = scene()
    samples = draw(KEY, proposals, gt, low=0.1)
    background = np.asarray(samples.boxes)[np.asarray(samples.valid & ~samples.positive)]
    assert len(background) > 0
    everything = draw(KEY, proposals, gt)
    assert int(samples.valid.sum()) < int(everything.valid.sum())
    corner = np.maximum(background[:, None, :2], gt.boxes[None, :4, :2])
    assert (np.minimum(background[:, None, 2:], gt.boxes[None, :4, 2:]) > corner).all(axis=-1).any(axis=-1).all()


def test_no_ground_truth_gives_background_alone():
    proposals, gt = scene(objects=0)
    samples = draw(KEY, proposals, gt)
    assert samples.valid.all()
    assert not samples.positive.any()
    assert (samples.classes == 0).all()


@pytest.mark.parametrize("key", [None, KEY])
def test_padding_may_hold_anything(key):
    proposals, gt = scene(crowd=[2])
    expected = draw(key, proposals, gt)
    for poison in (7.0, 1e6, np.nan):
        boxes, objects = proposals.boxes.copy(), gt.boxes.copy()
        boxes[~proposals.valid], objects[~gt.valid] = poison, poison
        result = draw(key, proposals.replace(boxes=boxes), gt.replace(boxes=objects, crowd=gt.crowd | ~gt.valid))
        assert_same(result, expected)
    # Rows behind the objects: those before them keep their random numbers.
    longer = jax.tree.map(
        lambda x: np.concatenate([x, np.full((9, *x.shape[1:]), 7 if x.dtype != bool else 0, x.dtype)]), gt
    )
    assert_same(draw(key, proposals, longer), expected)


def test_vmap_equals_loop_and_jit_equals_eager():
    scenes = [scene(seed) for seed in range(3)]
    keys = jax.random.split(KEY, 3)
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *scenes)
    batched = jax.jit(jax.vmap(lambda key, proposals, gt: sample_rois(key, proposals, gt, num=32)))(keys, *stacked)
    for i in range(3):
        assert_same(jax.tree.map(lambda x, i=i: x[i], batched), draw(keys[i], *scenes[i]))
    eager = sample_rois(keys[0], *jax.tree.map(jnp.asarray, scenes[0]), num=32)
    assert_same(eager, draw(keys[0], *scenes[0]))


def test_gradient_stops():
    proposals, gt = scene()
    gradient = jax.jit(jax.grad(lambda b: sample_rois(KEY, proposals.replace(boxes=b), gt, num=32).boxes.sum()))(
        proposals.boxes
    )
    assert (gradient == 0).all()
