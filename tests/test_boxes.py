"""Box geometry against torchvision, Detectron2 and plain NumPy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops import boxes as ops

GOLDEN = Path(__file__).parent / "golden"
BOXES = np.load(GOLDEN / "ops_geometry_boxes.npz")
CODER = np.load(GOLDEN / "ops_geometry_box_coder.npz")
WEIGHTS = [(1, 1, 1, 1), (10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]


def random_boxes(rng, *shape):
    corner, side = rng.uniform(0, 80, (*shape, 2)), rng.uniform(1, 60, (*shape, 2))
    return jnp.asarray(np.concatenate([corner, corner + side], axis=-1).astype(np.float32))


def test_iou_of_reference():
    np.testing.assert_allclose(
        ops.iou(jnp.asarray(BOXES["b1"]), jnp.asarray(BOXES["b2"])), BOXES["iou"], rtol=1e-6, atol=1e-7
    )


def test_area_of_reference():
    boxes = jnp.asarray(np.load(GOLDEN / "ops_geometry_nms.npz")["boxes"])
    np.testing.assert_array_equal(ops.area(boxes), BOXES["area"])


@pytest.mark.parametrize("kind", [tuple, np.asarray, lambda size: jnp.asarray(size, jnp.float32)])
def test_clip_of_reference(kind):
    size = kind([int(side) for side in BOXES["clip.size_hw"]])
    np.testing.assert_array_equal(ops.clip(jnp.asarray(BOXES["clip.in"]), size), BOXES["clip.out"])


def test_iou_of_degenerate_boxes_is_zero_with_finite_gradient():
    boxes = jnp.asarray([[5.0, 5, 5, 5], [0, 0, 10, 10], [7, 7, 3, 3], [5, 5, 5, 9]])
    result, gradient = jax.jit(lambda x: (ops.iou(x, x), jax.grad(lambda x: ops.iou(x, x).sum())(x)))(boxes)
    assert not np.isnan(result).any()
    np.testing.assert_array_equal(np.diag(result), [0, 1, 0, 0])
    assert np.isfinite(gradient).all()


def test_iou_of_equal_boxes_is_never_over_one():
    boxes = random_boxes(np.random.default_rng(0), 500)
    assert np.diag(jax.jit(ops.iou)(boxes, boxes)).max() <= 1


def test_overlap_is_the_share_of_the_box():
    boxes = jnp.asarray([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [1, 1, 1, 4]])
    regions = jnp.asarray([[0.0, 0, 10, 100]])
    np.testing.assert_array_equal(ops.overlap(boxes, regions)[:, 0], [1, 0.5, 0, 0])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("library", ["tv", "d2"])
def test_encode_and_decode_of_reference(library, weights):
    name = "_".join(map(str, weights))
    anchors, gt, deltas = (jnp.asarray(CODER[key]) for key in ("anchors", "gt", "deltas"))
    encoded = jax.jit(ops.encode, static_argnums=2)(gt[1:], anchors[1:], weights)
    np.testing.assert_allclose(encoded, CODER[f"{library}.encode.{name}"], rtol=1e-5, atol=1e-5)
    decoded = jax.jit(ops.decode, static_argnums=2)(deltas.reshape(60, 2, 4), anchors[:, None], weights)
    np.testing.assert_allclose(decoded.reshape(60, 8), CODER[f"{library}.decode.{name}"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_inverts_encode(weights):
    rng = np.random.default_rng(1)
    boxes, reference = random_boxes(rng, 100), random_boxes(rng, 100)
    decoded = jax.jit(lambda b, r: ops.decode(ops.encode(b, r, weights), r, weights))(boxes, reference)
    np.testing.assert_allclose(decoded, boxes, atol=1e-4)


def test_decode_limits_the_scale():
    reference = jnp.asarray([[0.0, 0, 16, 16]])
    box = ops.decode(jnp.asarray([[0.0, 0, 1e6, 1e6]]), reference, (1, 1, 1, 1))
    np.testing.assert_allclose(box, [[-492, -492, 508, 508]], rtol=1e-5)


def test_encode_of_zero_size_is_finite_with_finite_gradient():
    boxes = jnp.asarray([[3.0, 3, 3, 3], [0, 0, 4, 4], [9, 9, 2, 2]])
    reference = jnp.asarray([[0.0, 0, 4, 4], [5, 5, 5, 5], [0, 0, 0, 0]])

    def total(boxes, reference):
        return ops.encode(boxes, reference, (10, 10, 5, 5)).sum()

    for leaf in jax.tree.leaves(jax.jit(jax.value_and_grad(total, (0, 1)))(boxes, reference)):
        assert np.isfinite(leaf).all()


def test_flip():
    boxes = random_boxes(np.random.default_rng(2), 3, 5)
    flipped = ops.flip(boxes, 200)
    np.testing.assert_allclose(flipped[..., 0], 200 - boxes[..., 2], atol=1e-5)
    np.testing.assert_allclose(ops.flip(flipped, jnp.asarray(200, jnp.int32)), boxes, atol=1e-4)


def test_vmap_equals_loop_and_jit_equals_eager():
    rng = np.random.default_rng(3)
    a, b = random_boxes(rng, 3, 20), random_boxes(rng, 3, 30)

    def everything(a, b):
        coded = ops.encode(a, b[:20], (10, 10, 5, 5))
        return ops.iou(a, b), ops.overlap(a, b), coded, ops.decode(coded, a, (10, 10, 5, 5)), ops.clip(a, (50, 60))

    batched = jax.jit(jax.vmap(everything))(a, b)
    for i in range(3):
        for one, many in zip(everything(a[i], b[i]), batched, strict=True):
            np.testing.assert_allclose(one, many[i], rtol=1e-5, atol=1e-5)
