"""Matching against both reference libraries and plain NumPy; crowds; padding and poison."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops.match import match, match_rows
from mrcnn_jax.types import GroundTruth

GOLDEN = np.load(Path(__file__).parent / "golden" / "ops_geometry_matcher.npz")
POISON = [7.0, 1e6, np.nan]
RPN = {"high": 0.7, "low": 0.3, "low_quality": True}


def ground_truth(boxes, slots=None, crowd=()):
    """The boxes, and rows of zeros up to the number of slots."""
    n = len(boxes)
    slots = slots or n
    padded = np.zeros((slots, 4), np.float32)
    padded[:n] = boxes
    return GroundTruth(
        boxes=padded,
        classes=np.where(np.arange(slots) < n, 1 + np.arange(slots) % 5, 0).astype(np.int32),
        valid=np.arange(slots) < n,
        crowd=np.isin(np.arange(slots), crowd),
    )


def random_boxes(rng, n):
    corner, side = rng.uniform(0, 80, (n, 2)), rng.uniform(5, 60, (n, 2))
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def labels(matches):
    """Detectron2's: 1 positive, 0 negative, -1 neither."""
    assert not np.any(matches.positive & matches.negative)
    return np.where(matches.positive, 1, np.where(matches.negative, 0, -1))


def reference(iou, high, low, low_quality):
    """The rule of both libraries on a whole [g n] matrix, written plainly."""
    best = iou.max(axis=0)
    label = np.where(best >= np.float32(high), 1, np.where(best < np.float32(low), 0, -1))
    if low_quality:
        label[(iou == iou.max(axis=1, keepdims=True)).any(axis=0)] = 1
    return iou.argmax(axis=0), label


def match_matrix(iou, **settings):
    """`match_rows` on a matrix that is at hand."""
    real, present = jnp.ones(len(iou), bool), jnp.ones(iou.shape[1], bool)
    matrix = jnp.asarray(iou)
    return jax.jit(lambda: match_rows(lambda i: matrix[i], real, ~real, present, **settings))()


@pytest.mark.parametrize(
    ("low", "high", "keys"), [(0.3, 0.7, ("0.3_0.7_0", "0.3_0.7_0")), (0.5, 0.5, ("0.5_0.5_0", "0.5_0"))]
)
def test_thresholds_of_reference(low, high, keys):
    matches = match_matrix(GOLDEN["iou"], high=high, low=low, low_quality=False)
    torchvision = np.where(matches.positive, matches.gt, np.where(matches.negative, -1, -2))
    np.testing.assert_array_equal(torchvision, GOLDEN[f"tv.{keys[0]}"])
    np.testing.assert_array_equal(matches.gt, GOLDEN[f"d2.{keys[1]}.matches"])
    np.testing.assert_array_equal(labels(matches), GOLDEN[f"d2.{keys[1]}.labels"])
    np.testing.assert_array_equal(matches.iou, GOLDEN["iou"].max(axis=0))


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.7), (0.5, 0.5)])
def test_low_quality_of_reference(low, high):
    """The last golden row is all 0, which makes every anchor positive in the libraries: only there do we differ."""
    iou = GOLDEN["iou"]
    gt, label = reference(iou, high, low, True)
    np.testing.assert_array_equal(np.where(label == 1, gt, label - 1), GOLDEN[f"tv.{low}_{high}_1"])
    gt, label = reference(iou[:4], high, low, True)
    for matrix in (iou, iou[:4]):
        matches = match_matrix(matrix, high=high, low=low, low_quality=True)
        np.testing.assert_array_equal(matches.gt, gt)
        np.testing.assert_array_equal(labels(matches), label)
    assert (label != 1).any()


def test_no_ground_truth_of_reference():
    matches = match(jnp.asarray(random_boxes(np.random.default_rng(0), 7)), ground_truth(np.zeros((0, 4)), 3), **RPN)
    np.testing.assert_array_equal(matches.gt, GOLDEN["d2.no_gt.matches"])
    np.testing.assert_array_equal(labels(matches), GOLDEN["d2.no_gt.labels"])


def test_equals_numpy_on_boxes():
    rng = np.random.default_rng(1)
    run = jax.jit(lambda boxes, gt: match(boxes, gt, **RPN))
    for _ in range(30):
        boxes, objects = random_boxes(rng, 200), random_boxes(rng, 6)
        boxes[:20] = boxes[20:40]  # Ties: an object's best boxes may be two.
        iou = np.asarray(jax.jit(box_ops.iou)(objects, boxes))
        matches = run(boxes, ground_truth(objects))
        gt, label = reference(iou, 0.7, 0.3, True)
        np.testing.assert_array_equal(labels(matches), label)
        np.testing.assert_array_equal(np.asarray(matches.gt)[label == 1], gt[label == 1])
        for best in iou.argmax(axis=1):
            assert matches.positive[best]


def test_ties_between_objects_go_to_the_first():
    box = np.asarray([[0, 0, 10, 10]], np.float32)
    matches = match(jnp.asarray(box), ground_truth(np.repeat(box, 3, axis=0)), **RPN)
    assert matches.gt[0] == 0


def test_low_quality_keeps_the_box_with_its_own_best_object():
    objects = np.asarray([[0, 0, 10, 10], [0, 0, 10, 30]], np.float32)
    # The one box is the best that both objects have; it overlaps the second more.
    matches = match(jnp.asarray([[0.0, 0, 10, 20]]), ground_truth(objects), high=0.9, low=0.3, low_quality=True)
    assert matches.positive[0]
    assert matches.gt[0] == 1


def test_an_object_that_nothing_touches_promotes_nothing():
    objects = np.asarray([[500, 500, 510, 510], [5, 5, 5, 5]], np.float32)
    matches = match(jnp.asarray(random_boxes(np.random.default_rng(2), 20)), ground_truth(objects), **RPN)
    np.testing.assert_array_equal(labels(matches), np.zeros(20))


def test_crowd_is_no_target_and_its_inside_is_left_out():
    objects = np.asarray([[0, 0, 100, 100], [0, 0, 20, 20]], np.float32)
    boxes = [[0.0, 0, 100, 100], [60, 60, 80, 80], [60, 60, 150, 100], [0, 0, 20, 20], [200, 200, 220, 220]]
    matches = match(jnp.asarray(boxes), ground_truth(objects, crowd=[0]), **RPN)
    np.testing.assert_array_equal(labels(matches), [-1, -1, 0, 1, 0])
    assert matches.gt[3] == 1
    strict = match(jnp.asarray(boxes), ground_truth(objects, crowd=[0]), **RPN, crowd_ignore=0.4)
    np.testing.assert_array_equal(labels(strict), [-1, -1, -1, 1, 0])
    alone = match(jnp.asarray(boxes), ground_truth(objects[:1], crowd=[0]), **RPN)
    assert not alone.positive.any()


@jax.jit
def everything(boxes, gt, boxes_valid):
    return match(boxes, gt, **RPN, boxes_valid=boxes_valid)


def case(seed):
    rng = np.random.default_rng(seed)
    return random_boxes(rng, 60), ground_truth(random_boxes(rng, 5), 8, crowd=[seed % 5]), rng.random(60) < 0.7


def test_padding_may_hold_anything_and_may_grow():
    boxes, gt, valid = case(3)
    expected = everything(boxes, gt, valid)
    assert 0 < expected.positive.sum() < 60
    assert not np.any((expected.positive | expected.negative) & ~valid)
    for poison in POISON:
        bad_boxes, bad = boxes.copy(), gt.boxes.copy()
        bad_boxes[~valid], bad[~gt.valid] = poison, poison
        result = everything(bad_boxes, gt.replace(boxes=bad, crowd=gt.crowd | ~gt.valid), valid)
        assert_same(result, expected)
    for slots in (5, 30):
        result = everything(boxes, ground_truth(gt.boxes[:5], slots, crowd=np.flatnonzero(gt.crowd)), valid)
        assert_same(result, expected)


def test_holes_between_objects_are_allowed():
    boxes, gt, valid = case(4)
    order = np.asarray([5, 0, 6, 1, 2, 7, 3, 4])
    mixed = jax.tree.map(lambda x: x[order], gt)
    result, expected = everything(boxes, mixed, valid), everything(boxes, gt, valid)
    np.testing.assert_array_equal(labels(result), labels(expected))
    np.testing.assert_array_equal(order[result.gt][result.positive], expected.gt[expected.positive])


def test_invalid_boxes_are_no_objects_best():
    boxes = jnp.asarray([[0.0, 0, 10, 10], [0, 0, 10, 4]])
    gt = ground_truth(np.asarray([[0, 0, 10, 10]]))
    matches = match(boxes, gt, **RPN, boxes_valid=jnp.asarray([False, True]))
    np.testing.assert_array_equal(labels(matches), [-1, 1])


def test_vmap_equals_loop_and_jit_equals_eager():
    cases = [case(seed) for seed in (5, 6, 7)]
    cases[1] = (cases[1][0], ground_truth(np.zeros((0, 4)), 8), cases[1][2])
    batched = jax.vmap(everything)(*jax.tree.map(lambda *rows: np.stack(rows), *cases))
    for i, one in enumerate(cases):
        assert_same(jax.tree.map(lambda x, i=i: x[i], batched), everything(*one))
    eager = everything.__wrapped__(*jax.tree.map(jnp.asarray, cases[0]))
    np.testing.assert_array_equal(labels(eager), labels(jax.tree.map(lambda x: x[0], batched)))


def test_gradient_passes_by():
    boxes, gt, valid = case(8)

    def total(boxes):
        matches = everything(boxes, gt, valid)
        return jnp.where(matches.positive[:, None], boxes * matches.iou[:, None], 0.0).sum()

    gradient = jax.jit(jax.grad(total))(boxes)
    matches = everything(boxes, gt, valid)
    np.testing.assert_allclose(gradient[:, 0], np.where(matches.positive, matches.iou, 0.0), rtol=1e-6)


def test_memory_does_not_grow_with_the_number_of_objects():
    def temporary(slots):
        leaves = jax.tree.leaves(ground_truth(np.zeros((1, 4)), slots))
        program = jax.jit(lambda boxes, *leaves: match(boxes, GroundTruth(*leaves), **RPN))
        return program.lower(np.zeros((20_000, 4), np.float32), *leaves).compile().memory_analysis().temp_size_in_bytes

    assert temporary(300) < temporary(10) + 50_000
