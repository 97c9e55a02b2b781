"""RoIPool against torchvision's kernel and plain NumPy: rounding, ties, padding, batches."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops.roi_pool import roi_pool as pool

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "ops_roi_pool.npz"))
CASES = json.loads(str(GOLDEN["cases"]))


def roi_pool(features, extent, boxes, *, size, stride):
    """Over one map."""
    return pool([features], [extent], [stride], boxes, size=size, levels=jnp.zeros(len(boxes), jnp.int32))


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def round_away(x):
    return int(np.trunc(x) + (np.sign(x) if abs(x - np.trunc(x)) >= 0.5 else 0))


def numpy_roi_pool(features, boxes, cotangent, size):
    """Maxima over slices, and the gradient at the first maximum of each."""
    (height, width, channels), out = features.shape, np.zeros((len(boxes), size, size, features.shape[-1]), np.float32)
    gradient = np.zeros_like(features)
    for n, box in enumerate(boxes):
        x1, y1, x2, y2 = map(round_away, box)
        step_y, step_x = (np.float32(max(high - low + 1, 1)) / np.float32(size) for low, high in ((y1, y2), (x1, x2)))
        for p, q in np.ndindex(size, size):
            top, bottom = np.clip([y1 + np.floor(p * step_y), y1 + np.ceil((p + 1) * step_y)], 0, height).astype(int)
            left, right = np.clip([x1 + np.floor(q * step_x), x1 + np.ceil((q + 1) * step_x)], 0, width).astype(int)
            if bottom > top and right > left:
                bin_cells = features[top:bottom, left:right].reshape(-1, channels)
                out[n, p, q] = bin_cells.max(axis=0)
                for c, first in enumerate(bin_cells.argmax(axis=0)):
                    y, x = divmod(first, right - left)
                    gradient[top + y, left + x, c] += cotangent[n, p, q, c]
    return out, gradient


@jax.jit
def pool_7(features, extent, boxes, cotangent):
    out, transpose = jax.vjp(lambda features: roi_pool(features, extent, boxes, size=7, stride=1), features)
    return out, transpose(cotangent)[0]


def example(n=12, ties=True):
    rng = np.random.default_rng(0)
    features = rng.integers(-3, 3, (40, 50, 2)) if ties else rng.standard_normal((40, 50, 2))
    corner = rng.uniform(-8, 35, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 40, (n, 2))], axis=1)
    cotangent = rng.standard_normal((n, 7, 7, 2))
    return [x.astype(np.float32) for x in (features, boxes, cotangent)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "{}-{}".format(case["output_size"], case["spatial_scale"]))
def test_equals_the_reference_kernel(case):
    images, rois, size = jnp.asarray(nhwc(GOLDEN["x"])), GOLDEN["rois"], tuple(case["output_size"])
    own = rois[:, 0][None] == np.arange(2)[:, None]

    @jax.jit
    def run(images, cotangent):
        def one(features):
            extent = jnp.asarray([17, 23], jnp.int32)
            return roi_pool(features, extent, jnp.asarray(rois[:, 1:]), size=size, stride=1 / case["spatial_scale"])

        out, transpose = jax.vjp(jax.vmap(one), images)
        return out, transpose(cotangent)[0]

    cotangent = nhwc(GOLDEN["cotangent.{}x{}".format(*size)])
    out, gradient = run(images, jnp.where(own[:, :, None, None, None], cotangent[None], 0))
    out = np.where(own[0][:, None, None, None], out[0], out[1])
    np.testing.assert_array_equal(out, nhwc(GOLDEN[f"pool.{case['i']}.y"]))
    np.testing.assert_allclose(gradient, nhwc(GOLDEN[f"pool.{case['i']}.grad_x"]), rtol=1e-5, atol=1e-6)


def test_equals_numpy_and_the_first_of_equals_gets_the_gradient():
    features, boxes, cotangent = example()
    # Eleven cells in seven bins: a rounded reciprocal would add a twelfth; halves round away from zero.
    boxes[0], boxes[1] = [2, 3, 16, 13], [-2.5, 0.5, 8.5, 11.5]
    expected, expected_gradient = numpy_roi_pool(features, boxes, cotangent, 7)
    out, gradient = pool_7(features, jnp.asarray([40, 50]), boxes, cotangent)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


def test_each_box_is_read_from_its_own_level():
    features, boxes, cotangent = example(ties=False)
    fine, coarse, levels = jnp.asarray(features), jnp.asarray(features[:20, :25]), np.arange(12) % 2

    @jax.jit
    def both(fine, coarse):
        extents = jnp.asarray([[40, 50], [20, 25]])
        return pool([fine, coarse], extents, [1, 2], jnp.asarray(boxes), size=7, levels=jnp.asarray(levels))

    out, transpose = jax.vjp(both, fine, coarse)
    gradients = transpose(jnp.asarray(cotangent))
    for level, (one, stride) in enumerate(((features, 1), (features[:20, :25], 2))):
        own = levels == level
        expected, expected_gradient = numpy_roi_pool(one, boxes[own] / stride, cotangent[own], 7)
        np.testing.assert_array_equal(out[own], expected)
        np.testing.assert_allclose(gradients[level], expected_gradient, rtol=1e-5, atol=1e-5)


def test_map_ends_at_its_extent():
    features, boxes, cotangent = example(ties=False)
    expected, expected_gradient = numpy_roi_pool(features[:31, :42], boxes, cotangent, 7)
    features[31:], features[:, 42:] = np.nan, np.nan
    out, gradient = pool_7(features, jnp.asarray([31, 42]), boxes, cotangent)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_allclose(gradient[:31, :42], expected_gradient, rtol=1e-5, atol=1e-5)
    assert not np.any(gradient[31:])
    assert not np.any(gradient[:, 42:])


def test_poisoned_rows_are_zero_and_leave_the_others_alone():
    features, boxes, cotangent = example()
    clean, _ = pool_7(features, jnp.asarray([40, 50]), boxes, cotangent)
    results = []
    for poison in (np.nan, 1e6, -np.inf):
        boxes[[3, 11]] = poison
        results.append(pool_7(features, jnp.asarray([40, 50]), boxes, cotangent))
        assert not np.any(results[-1][0][jnp.asarray([3, 11])])
        jax.tree.map(np.testing.assert_array_equal, results[-1], results[0])
    kept = np.delete(np.arange(12), [3, 11])
    np.testing.assert_array_equal(results[0][0][kept], clean[kept])


def test_batch_equals_one_image_at_a_time():
    features, boxes, cotangent = example()
    batch = (
        jnp.stack([features, -features]),
        jnp.asarray([[40, 50], [20, 30]]),
        jnp.stack([boxes, boxes * 0.1]),
        jnp.stack([cotangent, cotangent]),
    )
    together = jax.jit(jax.vmap(pool_7))(*batch)
    for i in range(2):
        single = pool_7(*(x[i] for x in batch))
        np.testing.assert_array_equal(together[0][i], single[0])
        np.testing.assert_allclose(together[1][i], single[1], rtol=1e-5, atol=1e-5)


def test_bfloat16_in_and_out():
    features, boxes, cotangent = example()
    out, gradient = pool_7(features.astype(jnp.bfloat16), jnp.asarray([40, 50]), boxes, cotangent.astype(jnp.bfloat16))
    exact, exact_gradient = pool_7(features, jnp.asarray([40, 50]), boxes, cotangent)
    assert (out.dtype, gradient.dtype) == (jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_array_equal(out.astype(jnp.float32), exact)
    np.testing.assert_allclose(gradient.astype(jnp.float32), exact_gradient, rtol=2**-6, atol=2**-4)


def test_memory_follows_the_output_not_the_cells():
    """Large boxes have hundreds of cells a bin; only a maximum and its cell are kept."""
    features = jnp.zeros((100, 120, 32))
    boxes = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 119.0, 99.0]), (64, 4))
    cotangent = jnp.ones((64, 7, 7, 32))
    memory = pool_7.lower(features, jnp.asarray([100, 120]), boxes, cotangent).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * cotangent.nbytes + 3 * features.nbytes
