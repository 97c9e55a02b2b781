"""RoIPool: the largest feature in every bin of a box rounded to whole cells. For one image; the caller vmaps.

Fast R-CNN (Girshick 2015), section 2.1, with the rounding of torchvision's kernel. Of equal features the first, line by
line, gets the gradient.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from mrcnn_jax.ops.roi_align import batch_max, divide

# A row with NaN or with coordinates of this many pixels only fills up the array: it is pooled to zeros.
_LARGEST_COORDINATE = 1e5


def roi_pool(
    features: Float[Array, "h w c"],
    extent: Int[Array, "2"],
    boxes: Float[Array, "n 4"],
    *,
    size: int | tuple[int, int],
    stride: int | float,
) -> Float[Array, "n _oh _ow c"]:
    """The maximum over each bin, [n, size, size, c]; a bin outside the map or without cells is 0.

    `extent` is the height and width, in cells, of the part of the map that belongs to the image; `stride` is pixels to
    a cell. Box corners are rounded to cells, halves away from zero, and both corner cells belong to the box; bins
    overlap where they share a cell. A row with NaN or a coordinate beyond 1e5 gives zeros.
    """
    size = (size, size) if isinstance(size, int) else size
    bins = _locate(extent.astype(jnp.int32), boxes, size, stride)
    return _pool(features.shape, features.dtype, features, bins)


class _Bins(NamedTuple):
    """Cells low..high (exclusive) of every bin along each axis."""

    top: Int[Array, "n oh"]
    bottom: Int[Array, "n oh"]
    left: Int[Array, "n ow"]
    right: Int[Array, "n ow"]


def _locate(extent: Array, boxes: Array, size: tuple[int, int], stride: int | float) -> _Bins:
    known = jnp.all(jnp.abs(boxes) < _LARGEST_COORDINATE, axis=1)
    cells = jnp.where(known[:, None], boxes, 0).astype(jnp.float32) / stride
    whole = jnp.trunc(cells)
    cells = (whole + jnp.where(jnp.abs(cells - whole) >= 0.5, jnp.sign(cells), 0)).astype(jnp.int32)

    def bins(axis: int) -> tuple[Array, Array]:
        low, high = cells[:, 1 - axis, None], cells[:, 3 - axis, None]
        length = jnp.maximum(high - low + 1, 1).astype(jnp.float32)
        step = divide(length, size[axis])
        index = jnp.arange(size[axis], dtype=jnp.float32)[None]
        first = low + jnp.floor(index * step).astype(jnp.int32)
        last = low + jnp.ceil((index + 1) * step).astype(jnp.int32)
        return jnp.clip(first, 0, extent[axis]), jnp.where(known[:, None], jnp.clip(last, 0, extent[axis]), 0)

    return _Bins(*bins(0), *bins(1))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pool(shape: tuple[int, int, int], dtype: DTypeLike, features: Array, bins: _Bins) -> Array:
    return _pool_with_cells(features, bins)[0]


def _pool_with_cells(features: Array, bins: _Bins) -> tuple[Array, Array]:
    """Maxima, and the number of the cell that each came from (-1: none)."""
    _, width, channels = features.shape
    table = features.reshape(-1, channels)
    lines = jnp.maximum(bins.bottom - bins.top, 0)[:, :, None]
    columns = jnp.maximum(bins.right - bins.left, 0)[:, None, :]
    count = lines * columns

    def step(t, best):
        value, cell = best
        row = bins.top[:, :, None] + t // jnp.maximum(columns, 1)
        column = bins.left[:, None, :] + t % jnp.maximum(columns, 1)
        index = jnp.where(t < count, row * width + column, 0)
        candidate = table.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)
        better = (t < count)[..., None] & ((candidate > value) | (cell < 0))
        return jnp.where(better, candidate, value), jnp.where(better, index[..., None], cell)

    shape = (*count.shape, channels)
    start = jnp.zeros_like(features, shape=shape), jnp.full_like(features, -1, jnp.int32, shape)
    return lax.fori_loop(0, batch_max(count), step, start)


def _pool_forward(shape, dtype, features, bins):
    return _pool_with_cells(features, bins)


def _pool_backward(shape, dtype, cell, cotangent):
    channels = jnp.arange(shape[2], dtype=jnp.int32)[None, None, None, :]
    size = math.prod(shape)
    index = jnp.where(cell < 0, size, cell * shape[2] + channels)
    zeros = jnp.zeros_like(cotangent, jnp.float32, (size,))
    gradient = zeros.at[index].add(cotangent.astype(jnp.float32), mode="drop")
    return gradient.reshape(shape).astype(dtype), None


_pool.defvjp(_pool_forward, _pool_backward)
