"""NMS keeps what the greedy loop keeps, on both paths, and top-k treats validity and ties as promised."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops import nms as module
from mrcnn_jax.ops.nms import nms, top_k_valid

GOLDEN = Path(__file__).parent / "golden"
NMS = np.load(GOLDEN / "ops_geometry_nms.npz")
PROPOSALS = np.load(GOLDEN / "ops_geometry_proposals.npz")
THRESHOLDS = [0.0, 0.3, 0.45, 0.5, 0.7, 1.0]


@jax.jit
def on_cpu(boxes, scores, valid, threshold, groups):
    return nms(boxes, scores, valid, threshold, groups)


@jax.jit
def on_accelerator(boxes, scores, valid, threshold, groups):
    """`nms` as it is compiled for an accelerator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", lambda *rows, cpu, default: default(*rows))
        return nms(boxes, scores, valid, threshold, groups)


PATHS = pytest.mark.parametrize("path", [on_cpu, on_accelerator], ids=["cpu", "accelerator"])


def run(path, boxes, scores, threshold, groups=None, valid=None):
    n = len(boxes)
    groups = np.zeros(n, np.int32) if groups is None else groups.astype(np.int32)
    valid = np.ones(n, bool) if valid is None else valid
    return np.asarray(path(*map(jnp.asarray, (boxes, scores, valid, np.float32(threshold), groups))))


def greedy(boxes, scores, threshold, groups=None, valid=None):
    """The textbook loop, on the same float32 IoU."""
    overlap = np.asarray(jax.jit(box_ops.iou)(boxes, boxes)) > np.float32(threshold)
    if groups is not None:
        overlap &= groups[:, None] == groups[None, :]
    keep = np.zeros(len(boxes), bool)
    for i in np.argsort(-scores, kind="stable"):
        keep[i] = (valid is None or valid[i]) and not (overlap[i] & keep).any()
    return keep


def scene(rng, n, kind):
    """Boxes and scores: spread out, in clusters round a few objects, or on a coarse grid with tied scores and twins."""
    center, side = rng.uniform(0, 300, (n, 2)), rng.uniform(5, 100, (n, 2))
    if kind != "spread":
        of = rng.integers(0, 8, n)
        center, side = center[of] + rng.normal(0, 6, (n, 2)), side[of] * np.exp(rng.normal(0, 0.15, (n, 2)))
    boxes, scores = np.concatenate([center - side / 2, center + side / 2], axis=1), rng.normal(size=n)
    if kind == "ties":
        boxes, scores = np.round(boxes / 10) * 10, np.round(scores)
    return boxes.astype(np.float32), scores.astype(np.float32)


@PATHS
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_same_rows_as_reference(path, threshold):
    for name, groups in (("nms", None), ("batched_nms", NMS["labels"])):
        keep = run(path, NMS["boxes"], NMS["scores"], threshold, groups)
        order = np.argsort(-NMS["scores"], kind="stable")
        np.testing.assert_array_equal(order[keep[order]], NMS[f"{name}.{threshold}"])


@PATHS
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_threshold_is_strict_and_ties_go_to_the_lower_index(path, threshold):
    keep = run(path, NMS["exact.boxes"], NMS["exact.scores"], threshold)
    np.testing.assert_array_equal(np.flatnonzero(keep), NMS[f"exact.nms.{threshold}"])


@PATHS
@pytest.mark.parametrize("kind", ["spread", "clusters", "ties"])
def test_equals_greedy(path, kind):
    rng = np.random.default_rng(7)
    for case in range(120):
        threshold, n = THRESHOLDS[case % 6], 80
        boxes, scores = scene(rng, n, kind)
        groups = rng.integers(0, 3, n) if case % 4 == 1 else None
        valid = rng.random(n) < 0.7 if case % 4 >= 2 else None
        keep = run(path, boxes, scores, threshold, groups, valid)
        np.testing.assert_array_equal(keep, greedy(boxes, scores, threshold, groups, valid))


@PATHS
def test_equals_greedy_on_a_chain(path):
    """Each box falls to its predecessor alone, so that the last is settled only after all others."""
    left = 5 * np.arange(300)
    boxes = np.stack([left, 0 * left, left + 10, 0 * left + 10], axis=1).astype(np.float32)
    keep = run(path, boxes, -np.arange(300, dtype=np.float32), 0.3)
    np.testing.assert_array_equal(keep, np.arange(300) % 2 == 0)


@PATHS
def test_invalid_rows_are_neither_kept_nor_felt(path):
    rng = np.random.default_rng(1)
    boxes, scores = scene(rng, 80, "clusters")
    valid = rng.random(80) < 0.6
    expected = np.zeros(80, bool)
    expected[valid] = greedy(boxes[valid], scores[valid], 0.5)
    for poison in (7.0, 1e6, np.nan):
        boxes[~valid], scores[~valid] = poison, poison
        np.testing.assert_array_equal(run(path, boxes, scores, 0.5, valid=valid), expected)
    assert not run(path, boxes, scores, 0.5, valid=np.zeros(80, bool)).any()
    np.testing.assert_array_equal(run(path, boxes, scores, 0.5), expected)


@PATHS
def test_padding_rows_change_nothing(path):
    boxes, scores = scene(np.random.default_rng(2), 80, "ties")
    keep = run(path, boxes, scores, 0.5)
    padded = np.pad(boxes, ((0, 40), (0, 0)), constant_values=3), np.pad(scores, (0, 40), constant_values=9)
    longer = run(path, *padded, 0.5, valid=np.arange(120) < 80)
    np.testing.assert_array_equal(longer, np.pad(keep, (0, 40)))


@PATHS
def test_vmap_equals_loop(path):
    rng = np.random.default_rng(3)
    boxes, scores = map(np.stack, zip(*(scene(rng, 80, kind) for kind in ("spread", "clusters", "ties")), strict=True))
    valid = rng.random((3, 80)) < np.asarray([[1.0], [0.5], [0.0]])
    groups = np.zeros((3, 80), np.int32)
    batched = jax.vmap(path, (0, 0, 0, None, 0))(boxes, scores, valid, np.float32(0.5), groups)
    for i in range(3):
        np.testing.assert_array_equal(batched[i], run(path, boxes[i], scores[i], 0.5, valid=valid[i]))


def test_jit_equals_eager():
    boxes, scores = map(jnp.asarray, scene(np.random.default_rng(4), 80, "ties"))
    np.testing.assert_array_equal(nms(boxes, scores, jnp.ones(80, bool), 0.5), run(on_cpu, boxes, scores, 0.5))


def test_no_rows():
    keep = nms(jnp.zeros((0, 4)), jnp.zeros(0), jnp.zeros(0, bool), 0.5)
    assert keep.shape == NMS["empty.nms"].shape


def test_gradient_passes_by():
    boxes, scores = map(jnp.asarray, scene(np.random.default_rng(5), 80, "clusters"))

    def total(boxes, scores):
        return jnp.where(nms(boxes, scores, jnp.ones(80, bool), 0.5), scores, 0.0).sum()

    of_boxes, of_scores = jax.jit(jax.grad(total, (0, 1)))(boxes, scores)
    assert (of_boxes == 0).all()
    np.testing.assert_array_equal(of_scores, run(on_cpu, boxes, scores, 0.5))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators_as_a_fixed_point(platform):
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (((9, 4), "float32"), ((9,), "float32"), ((9,), "bool"))
    ]
    text = jax.jit(partial(nms, threshold=0.5)).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert "9x9xi1" in text


def test_proposals_of_torchvision():
    """Top-k a level, clip, drop small boxes, NMS a level, best of all: torchvision's filter_proposals."""
    level = jnp.repeat(jnp.arange(3), PROPOSALS["num_anchors_per_level"])

    @jax.jit
    def propose(logits, decoded, size):
        best = [top_k_valid(logits, level == number, 100) for number in range(3)]
        index, valid = (jnp.concatenate(parts) for parts in zip(*best, strict=True))
        boxes = box_ops.clip(decoded[index], size)
        valid &= ((boxes[:, 2:] - boxes[:, :2]) >= 1e-3).all(axis=1)
        scores = jax.nn.sigmoid(logits[index])
        final, present = top_k_valid(scores, nms(boxes, scores, valid, 0.7, level[index]), 30)
        return boxes[final], scores[final], present

    for i in range(2):
        boxes, scores, present = propose(*(PROPOSALS[key][i] for key in ("objectness", "decoded", "image_sizes")))
        assert present.all()
        np.testing.assert_allclose(boxes, PROPOSALS[f"out.boxes.{i}"], rtol=1e-6)
        np.testing.assert_allclose(scores, PROPOSALS[f"out.scores.{i}"], rtol=1e-6)


def test_top_k_order_ties_and_padding():
    scores = jnp.asarray([0.0, 2.0, -0.0, -jnp.inf, 2.0, jnp.nan, 5.0])
    valid = jnp.asarray([True, True, True, True, True, False, False])
    index, present = top_k_valid(scores, valid, 9)
    np.testing.assert_array_equal(index[:5], [1, 4, 0, 2, 3])
    np.testing.assert_array_equal(present, [True] * 5 + [False] * 4)
    index, present = top_k_valid(scores, valid, 2)
    np.testing.assert_array_equal(index, [1, 4])
    assert present.all()


def test_long_ties_stay_in_order():
    index, _ = jax.jit(top_k_valid, static_argnums=2)(jnp.zeros(5000), jnp.ones(5000, bool), 3000)
    np.testing.assert_array_equal(index, np.arange(3000))


def test_rounds_per_trip_do_not_matter(monkeypatch):
    boxes, scores = scene(np.random.default_rng(6), 80, "clusters")
    rows = jnp.asarray(boxes[np.argsort(-scores)]), jnp.zeros(80, jnp.int32), jnp.ones(80, bool)
    results = []
    for rounds in (1, 3, 8):
        monkeypatch.setattr(module, "ROUNDS_PER_TRIP", rounds)
        results.append(jax.jit(partial(module._all_rows_at_once, 0.5))(*rows))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
