"""Pooling of a batch's RoIs, of which some rows only fill up the array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.models.pool import Pooler


@pytest.mark.parametrize(
    "rules",
    [
        {"aligned": False, "sampling_ratio": 0}, {"aligned": True, "sampling_ratio": 0},
        {"aligned": False, "sampling_ratio": 2}, {"aligned": True, "sampling_ratio": 2},
        {"kind": "warp", "sampling_ratio": 2}, {"kind": "warp", "sampling_ratio": 2, "largest": True},
        {"kind": "pool"}, {"context": 2},
    ],
    ids=str,
)  # fmt: skip
def test_rows_that_are_not_valid_take_no_sample(rules):
    """Forward they are zeros; backward no cell gets anything, so that empty slots cannot queue for the first cell."""
    rng = np.random.default_rng(0)
    maps = jnp.asarray(rng.standard_normal((2, 16, 24, 3)), jnp.float32)
    corner = rng.uniform(0, 50, (2, 5, 2))
    boxes = jnp.asarray(np.concatenate([corner, corner + 20], axis=-1), jnp.float32)
    valid = jnp.asarray([[True, False, True, False, False], [False] * 5])
    pooler = Pooler(levels=(2,), **rules)

    def pool(maps):
        return pooler({2: (maps, None)}, boxes, valid, 7)

    pooled, transpose = jax.vjp(jax.jit(pool), maps)
    np.testing.assert_array_equal(np.any(pooled, axis=(2, 3, 4)), valid)
    only_invalid = jnp.broadcast_to(jnp.where(valid, 0, jnp.nan)[..., None, None, None], pooled.shape)
    np.testing.assert_array_equal(transpose(only_invalid)[0], 0)


def test_context_shows_what_lies_around_the_roi():
    """R-CNN's warp: of 8 cells one on each side lies outside of the box, and beyond the image there is nothing."""
    image = jnp.ones((1, 60, 80, 1))
    boxes = jnp.asarray([[[12.0, 18.0, 24.0, 36.0], [0.0, 0.0, 12.0, 18.0]]])
    marked = image.at[0, 18:36, 12:24].set(3.0)
    pooled = Pooler(levels=(0,), context=1)({0: (marked, None)}, boxes, jnp.ones((1, 2), bool), 8)[0, ..., 0]
    expected = np.ones((8, 8))
    expected[1:7, 1:7] = 3
    np.testing.assert_allclose(pooled[0], expected, rtol=1e-6)
    # The first pixel beyond a border repeats it, as in RoIAlign: one of the two by three that make a cell.
    expected = np.ones((8, 8))
    expected[0], expected[:, 0], expected[0, 0] = 1 / 3, 1 / 2, 1 / 6
    np.testing.assert_allclose(pooled[1, :6, :6], expected[:6, :6], rtol=1e-6)
