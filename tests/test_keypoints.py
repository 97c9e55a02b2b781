"""Heatmap targets and decoding against both libraries and plain NumPy, the keypoint head, and the rules on padding."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.errors import UserError
from mrcnn_jax.models.keypoint import KeypointTask
from mrcnn_jax.nn.mask_heads import KeypointHead, UpConv
from mrcnn_jax.ops.keypoints import decode, heatmap_targets
from mrcnn_jax.ops.losses import keypoint_loss
from mrcnn_jax.types import Detections, GroundTruth, Samples

GOLDEN = np.load(Path(__file__).parent / "golden" / "ops_keypoints.npz")
POISON = [7.0, 1e6, np.nan, np.inf, -np.inf]
KEY = jax.random.key(0)
# Smaller than a heatmap; three pieces wide; beyond any border, two pieces high; without an area.
BOXES = np.array([[3.2, 5.1, 9.4, 40], [0, 0, 300.5, 20], [-30, -40, 3, 160.25], [7, 7, 7, 7]], np.float32)

# Four samples of three objects with two keypoints; the last two samples are background and padding.
SAMPLES = Samples(
    boxes=np.array([[0, 0, 20, 20], [5, 5, 9, 9], [0, 0, 20, 20], [0, 0, 20, 20]], np.float32),
    gt=np.array([1, 0, 0, 2], np.int32),
    classes=np.array([1, 1, 0, 0], np.int32),
    positive=np.array([True, True, False, False]),
    valid=np.array([True, True, True, False]),
)
POINTS = np.array([[[6, 7, 2], [3, 4, 2]], [[1, 2, 1], [20, 20, 2]], [[5, 5, 2], [6, 6, 2]]], np.float32)

targets = jax.jit(heatmap_targets, static_argnums=2)
read = jax.jit(decode, static_argnames="score")
value_and_grad = jax.jit(jax.value_and_grad(keypoint_loss, has_aux=True))
init = jax.jit(lambda head, x: head.init(KEY, x, True), static_argnums=0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def resizing(length, m):
    """Matrix [length, m] of a bicubic resize, one tap after the other."""
    matrix = np.zeros((length, m))
    for cell in range(length):
        position = (cell + 0.5) * m / length - 0.5
        for tap in range(int(np.floor(position)) - 1, int(np.floor(position)) + 3):
            x = abs(position - tap)
            weight = 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[cell, min(max(tap, 0), m - 1)] += weight
    return matrix


def decoded(heatmap, box):
    """x, y, probability and logit of one heatmap in one box."""
    side = np.maximum(box[2:] - box[:2], 1).astype(np.float64)
    width, height = np.ceil(side).astype(int)
    heatmap = heatmap.astype(np.float64)
    large = resizing(height, len(heatmap)) @ heatmap @ resizing(width, len(heatmap)).T
    y, x = np.unravel_index(np.argmax(large), large.shape)
    place = (np.array([x, y]) + 0.5) * side / [width, height] + box[:2]
    return [*place, np.exp(large.max()) / np.exp(heatmap).sum(), large.max()]


def test_targets_of_the_references():
    cells, labelled = targets(GOLDEN["kp"], GOLDEN["rois"], 56)
    for library in ("tv", "d2"):
        np.testing.assert_array_equal(labelled, GOLDEN[f"{library}.valid"] > 0)
        np.testing.assert_array_equal(cells, GOLDEN[f"{library}.target"])


def test_targets_at_the_borders():
    points = [[10, 20, 2], [30, 60, 1], [9.99, 20, 2], [30, 60.01, 2], [29.99, 39.99, 2], [15, 30, 0], [np.nan, 30, 2]]
    cells, labelled = targets(jnp.asarray([points]), jnp.asarray([[10.0, 20, 30, 60]]), 4)
    np.testing.assert_array_equal(labelled, [[True, True, False, False, True, False, False]])
    np.testing.assert_array_equal(cells, [[0, 15, 0, 0, 7, 0, 0]])


def test_just_inside_the_far_border_is_the_last_cell_whatever_the_rounding():
    low, side = np.random.default_rng(0).uniform(1, 900, (2, 500, 2)).astype(np.float32)
    boxes = np.concatenate([low, low + side], axis=1)
    points = np.concatenate([np.nextafter(boxes[:, 2:], np.float32(0)), np.ones((500, 1), np.float32)], axis=1)
    cells, labelled = targets(points[:, None], boxes, 56)
    assert np.all(labelled)
    assert np.all(np.asarray(cells) == 56 * 56 - 1)


def test_targets_of_a_batch_are_those_of_its_images():
    keypoints, boxes = (np.stack([GOLDEN[key], GOLDEN[key][::-1]]) for key in ("kp", "rois"))
    cells, labelled = jax.jit(jax.vmap(lambda *image: heatmap_targets(*image, 28)))(keypoints, boxes)
    for i in range(2):
        expected = targets(keypoints[i], boxes[i], 28)
        jax.tree.map(np.testing.assert_array_equal, (cells[i], labelled[i]), expected)


def test_a_box_without_area_labels_nothing():
    boxes = jnp.asarray([[5.0, 5, 5, 9], [5, 9, 8, 5], [np.nan, 0, 9, 9]])
    cells, labelled = targets(jnp.full((3, 1, 3), 5.0), boxes, 56)
    assert not np.any(labelled)
    assert not np.any(cells)


def test_decode_gives_what_the_references_give():
    maps, boxes = GOLDEN["heatmaps"], GOLDEN["rois"]
    probability, logit = (np.asarray(read(maps, boxes, score=score)) for score in ("probability", "logit"))
    np.testing.assert_allclose(probability, GOLDEN["d2.keypoints"][..., [0, 1, 3]], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logit, GOLDEN["d2.keypoints"][..., :3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logit[..., :2], GOLDEN["tv.keypoints"][..., :2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logit[..., 2], GOLDEN["tv.scores"], rtol=1e-5, atol=1e-5)


def test_decode_equals_numpy_with_one_program_for_boxes_of_any_size():
    read.clear_cache()
    for seed in range(3):
        maps, boxes = normal(4, 2, 8, 8, seed=seed), BOXES * np.float32(1 + seed / 4) + np.float32(seed)
        expected = np.array([[decoded(one, box) for one in row] for row, box in zip(maps, boxes, strict=True)])
        np.testing.assert_allclose(read(maps, boxes, score="probability"), expected[..., :3], rtol=1e-5, atol=1e-5)
    assert read._cache_size() == 1


def test_the_first_in_reading_order_among_equals():
    """Boxes of 8 or 16 cells read maps of 8 exactly; in the others every cell is the highest."""
    maps = np.zeros((4, 2, 8, 8), np.float32)
    maps[:2, :, 2, 6] = maps[:2, :, 5, 1] = 3
    boxes = np.array([[0, 0, 8, 8], [0, 0, 16, 16], [0, 0, 300, 150], [0, 0, 1, 1]], np.float32)
    # Twice as large, the highest are the middle four of the cells that a cell became.
    expected = np.array([[6.5, 2.5], [12.5, 4.5], [0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(
        read(maps, boxes, score="probability")[..., :2], expected[:, None].repeat(2, 1), atol=1e-5
    )
    # Equal maxima at the right of the upper piece and at the left of the lower one.
    wide = np.zeros((4, 2, 8, 8), np.float32)
    wide[..., 1, 7] = wide[..., 6, 0] = 3
    boxes = np.array([[0, 0, 256, 256]], np.float32).repeat(4, 0)
    found = read(wide, boxes, score="probability")
    assert np.all(found[..., 1] < 128)
    assert np.all(found[..., 0] > 128)


def test_batch_equals_one_image_at_a_time():
    """Also with more boxes than are enlarged together, and a remainder."""
    maps, boxes = normal(2, 23, 1, 8, 8), np.tile(BOXES, (12, 1))[:46].reshape(2, 23, 4)
    batched = jax.jit(jax.vmap(decode))(maps, boxes)
    for i in range(2):
        for first in range(0, 20, 4):
            rows = slice(first, first + 4)
            alone = read(maps[i, rows].repeat(2, 1), boxes[i, rows], score="probability")[:, :1]
            np.testing.assert_allclose(batched[i, rows], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("poison", [*POISON, 1e9])
def test_poisoned_boxes_leave_the_others_alone(poison):
    maps = normal(4, 2, 8, 8)
    clean = read(maps, BOXES, score="probability")
    boxes = BOXES.copy()
    boxes[1] = poison
    boxes[3, 2:] = poison
    found = read(maps, boxes, score="probability")
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[::2], clean[::2])
    if not abs(poison) < 1e4:
        assert not np.any(found[3])


def test_memory_does_not_grow_with_the_number_of_boxes():
    def temporary(d):
        shapes = jax.ShapeDtypeStruct((d, 2, 56, 56), jnp.float32), jax.ShapeDtypeStruct((d, 4), jnp.float32)
        return jax.jit(decode).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(10), temporary(100)
    assert many - few < 1e6


def test_loss_is_the_mean_cross_entropy_of_the_labelled():
    logits, where = normal(4, 2, 8, 8), np.array([[1, 0], [1, 1], [0, 0], [0, 1]], bool)
    cells = np.random.default_rng(0).integers(0, 64, (4, 2)).astype(np.int32)
    (total, weight), gradient = value_and_grad(logits, cells, where)
    flat = logits.reshape(4, 2, 64).astype(np.float64)
    probability = np.exp(flat) / np.exp(flat).sum(axis=-1, keepdims=True)
    picked = np.take_along_axis(probability, cells[..., None], axis=-1)[..., 0]
    assert int(weight) == where.sum() == 4
    np.testing.assert_allclose(total, -np.log(picked)[where].sum(), rtol=1e-6)
    expected = np.where(where[..., None], probability - np.eye(64)[cells], 0)
    np.testing.assert_allclose(gradient.reshape(4, 2, 64), expected, atol=1e-6)


@pytest.mark.parametrize("poison", POISON)
def test_poison_leaves_no_trace_in_the_loss(poison):
    logits, where = normal(4, 2, 8, 8), np.array([[1, 0], [1, 1], [0, 0], [0, 1]], bool)
    cells = np.where(where, 5, 0).astype(np.int32)
    expected = value_and_grad(logits, cells, where)
    found = value_and_grad(np.where(where[..., None, None], logits, np.float32(poison)), cells, where)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))


def task(score="probability"):
    return KeypointTask(KeypointHead((4,), 2), size=2, score=score)


def truth(points=POINTS):
    g = len(SAMPLES.boxes) - 1
    return GroundTruth(np.zeros((g, 4), np.float32), np.ones(g, np.int32), *np.zeros((2, g), bool), keypoints=points)


task_losses = jax.jit(jax.value_and_grad(lambda *a: task().losses(*a)["keypoint"], has_aux=True))


def test_task_trains_on_positives_alone():
    """Of four keypoints of the two positives, one lies outside its RoI."""
    logits = normal(4, 8, 8, 2)
    (total, weight), gradient = task_losses(logits, SAMPLES, truth())
    where = np.array([[True, True], [True, False]])
    cells = np.array([[0 * 8 + 0, 63], [4 * 8 + 2, 0]], np.int32)
    expected, count = jax.jit(keypoint_loss)(logits[:2].transpose(0, 3, 1, 2), cells, where)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert weight == count == 3
    assert not np.any(gradient[2:])
    assert not np.any(gradient[1, ..., 1])
    for poison in POISON:
        samples = SAMPLES.replace(
            boxes=np.where(SAMPLES.positive[:, None], SAMPLES.boxes, np.float32(poison)),
            gt=np.where(SAMPLES.positive, SAMPLES.gt, np.int32(2**30)),
        )
        points = POINTS.copy()
        points[2] = poison
        bad = np.where(SAMPLES.positive[:, None, None, None], logits, np.float32(poison))
        found = task_losses(bad, samples, truth(points))
        jax.tree.map(np.testing.assert_array_equal, found, ((total, weight), gradient))


def test_task_without_positives_or_the_right_keypoints():
    none = SAMPLES.replace(positive=np.zeros(4, bool))
    (total, weight), gradient = task_losses(normal(4, 8, 8, 2), none, truth())
    assert total == weight == 0
    assert not np.any(gradient)
    with pytest.raises(UserError, match=r"set config\.data\.keypoints=True"):
        task().losses(jnp.zeros((4, 8, 8, 2)), SAMPLES, truth(None))
    with pytest.raises(UserError, match="has 2 keypoints and the model predicts 17"):
        task().losses(jnp.zeros((4, 8, 8, 17)), SAMPLES, truth())


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_task_reads_detections_and_leaves_zeros_where_there_are_none(score):
    logits, valid = normal(4, 8, 8, 2), np.array([True, True, False, False])
    detections = Detections(BOXES, np.ones(4, np.float32), np.ones(4, np.int32), valid)
    detect = jax.jit(task(score).detect)
    found = detect(logits, detections)
    expected = np.array([[decoded(logits[i, ..., j], BOXES[i]) for j in range(2)] for i in range(2)])
    columns = [0, 1, 2 if score == "probability" else 3]
    np.testing.assert_allclose(found.keypoints[:2], expected[..., columns], rtol=1e-5, atol=1e-5)
    for poison in POISON:
        rows = valid[:, None], valid[:, None, None, None]
        boxes, bad = (np.where(m, x, np.float32(poison)) for m, x in zip(rows, (BOXES, logits), strict=True))
        again = detect(bad, detections.replace(boxes=boxes))
        np.testing.assert_array_equal(again.keypoints, found.keypoints)
    assert not np.any(found.keypoints[2:])


def test_head_has_the_names_and_sizes_of_the_references():
    rois = jax.ShapeDtypeStruct((2, 14, 14, 256), jnp.float32)
    logits, variables = jax.eval_shape(lambda x: KeypointHead().init_with_output(KEY, x, True), rois)
    params = variables["params"]
    assert logits.shape == (2, 56, 56, 17)
    assert set(params) == {f"conv{i}" for i in range(1, 9)} | {"score_lowres"}
    assert params["score_lowres"]["kernel"].shape == (4, 4, 512, 17)
    # With a Faster R-CNN of one class this makes the 59.13 million of Detectron2's model.
    assert sum(x.size for x in jax.tree.leaves(params)) == 17_838_097


def test_head_begins_as_the_references():
    params = init(KeypointHead((64,), 17), normal(1, 4, 4, 8))["params"]
    assert np.std(params["conv1"]["kernel"]) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.05)
    assert np.std(params["score_lowres"]["kernel"]) == pytest.approx(np.sqrt(2 / (16 * 64)), rel=0.05)
    assert not any(np.any(layer["bias"]) for layer in params.values())


def transposed(x, weight, bias):
    """PyTorch's ConvTranspose2d of kernel 4, stride 2, padding 1; weight [in out 4 4]. Each cell adds its kernel."""
    n, h, w, _ = x.shape
    y = np.zeros((n, 2 * h + 2, 2 * w + 2, weight.shape[1]))
    for row, column in np.ndindex(h, w):
        patch = np.einsum("nc,cdij->nijd", x[:, row, column], weight)
        y[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += patch
    return y[:, 1:-1, 1:-1] + bias


def upsampled(x):
    """Bilinear to twice the side: every new cell lies a quarter of a cell off an old one, towards the next."""
    for axis in (1, 2):
        n = x.shape[axis]
        before, after = (np.take(x, np.clip(np.arange(n) + step, 0, n - 1), axis) for step in (-1, 1))
        pair = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pair.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


def test_head_is_a_transposed_convolution_and_bilinear_interpolation():
    x, weight, bias = normal(2, 3, 4, 6), normal(6, 5, 4, 4, seed=1), normal(5, seed=2)
    params = {"kernel": weight.transpose(2, 3, 0, 1), "bias": bias}
    y = jax.jit(UpConv(5).apply)({"params": params}, x)
    np.testing.assert_allclose(y, transposed(x, weight, bias), atol=1e-4)
    x = x[:, :, :3]
    y = jax.jit(KeypointHead((), 5).apply, static_argnums=2)({"params": {"score_lowres": params}}, x, True)
    np.testing.assert_allclose(y, upsampled(transposed(x, weight, bias)), atol=1e-4)


def test_task_applies_the_head_to_all_rois_in_float32():
    model = KeypointTask(KeypointHead((4, 4), 3, dtype="bfloat16"), size=2)
    run = jax.jit(lambda x, valid: model.init_with_output(KEY, x, valid, False))
    logits, variables = run(normal(2, 3, 2, 2, 5), np.ones((2, 3), bool))
    assert logits.shape == (2, 3, 8, 8, 3)
    assert {x.dtype for x in jax.tree.leaves((logits, variables))} == {jnp.dtype("float32")}
