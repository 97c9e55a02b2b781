"""Pooling of a batch's RoIs, of which some rows only fill up the array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.models.pool import Pooler


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_rows_that_are_not_valid_take_no_sample(aligned, ratio):
    """Forward they are zeros; backward no cell gets anything, so that empty slots cannot queue for the first cell."""
    rng = np.random.default_rng(0)
    maps = jnp.asarray(rng.standard_normal((2, 16, 24, 3)), jnp.float32)
    corner = rng.uniform(0, 50, (2, 5, 2))
    boxes = jnp.asarray(np.concatenate([corner, corner + 20], axis=-1), jnp.float32)
    valid = jnp.asarray([[True, False, True, False, False], [False] * 5])
    pooler = Pooler(aligned=aligned, sampling_ratio=ratio, levels=(2,))

    def pool(maps):
        return pooler({2: (maps, None)}, boxes, valid, 7)

    pooled, transpose = jax.vjp(jax.jit(pool), maps)
    np.testing.assert_array_equal(np.any(pooled, axis=(2, 3, 4)), valid)
    only_invalid = jnp.broadcast_to(jnp.where(valid, 0, jnp.nan)[..., None, None, None], pooled.shape)
    np.testing.assert_array_equal(transpose(only_invalid)[0], 0)
