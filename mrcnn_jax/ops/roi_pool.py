"""RoIPool: the largest feature in every bin of a box rounded to whole cells. For one image; the caller vmaps.

Fast R-CNN (Girshick 2015), section 2.1, with the rounding of torchvision's kernel. Of equal features the first, line by
line, gets the gradient.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from mrcnn_jax.ops.roi_align import Pyramid, batch_max, divide, first_rows

# A row with NaN or with coordinates of this many pixels only fills up the array: it is pooled to zeros.
_LARGEST_COORDINATE = 1e5


def roi_pool(
    pyramid: Pyramid,
    extents: Sequence[Int[Array, "2"]] | Int[Array, "l 2"],
    strides: Sequence[int | float] | Float[Array, " l"],
    boxes: Float[Array, "n 4"],
    *,
    size: int | tuple[int, int],
    levels: Int[Array, " n"],
) -> Float[Array, "n _oh _ow _c"]:
    """The maximum over each bin, [n, size, size, c]; a bin outside the map or without cells is 0.

    Box corners are rounded to cells, halves away from zero, and both corner cells belong to the box; bins overlap where
    they share a cell. A row with NaN or a coordinate beyond 1e5 gives zeros.

    Args:
        pyramid: maps [h, w, c].
        extents: height and width, in cells, of the part of each map that belongs to the image.
        strides: pixels to a cell, for each map.
        boxes: xyxy in pixels.
        size: bins along the height and width of a box.
        levels: index into the pyramid for every box.
    """
    size = (size, size) if isinstance(size, int) else size
    shapes = tuple(features.shape for features in pyramid)
    levels = jnp.clip(levels, 0, len(shapes) - 1)
    bins = _locate(jnp.asarray(extents, jnp.int32)[levels], jnp.asarray(strides, jnp.float32)[levels], boxes, size)
    first_row, width = (jnp.asarray(x, jnp.int32)[levels] for x in (first_rows(shapes)[:-1], [w for _, w, _ in shapes]))
    return _pool(shapes, pyramid[0].dtype, tuple(pyramid), _Bins(*bins, first_row, width))


def to_cells(boxes: Float[Array, "n 4"], strides: Float[Array, " n"]) -> Int[Array, "n 4"]:
    """The cells of a box's corners: RoIPool's quantisation, which rounds halves away from zero."""
    cells = boxes.astype(jnp.float32) / strides[:, None]
    whole = jnp.trunc(cells)
    return (whole + jnp.where(jnp.abs(cells - whole) >= 0.5, jnp.sign(cells), 0)).astype(jnp.int32)


class _Bins(NamedTuple):
    """Cells low..high (exclusive) of every bin along each axis of its level."""

    top: Int[Array, "n oh"]
    bottom: Int[Array, "n oh"]
    left: Int[Array, "n ow"]
    right: Int[Array, "n ow"]
    # The level's first row in the table of all levels, and how many rows make one line of it.
    first_row: Int[Array, " n"]
    width: Int[Array, " n"]


def _locate(extents: Array, strides: Array, boxes: Array, size: tuple[int, int]) -> tuple[Array, ...]:
    known = jnp.all(jnp.abs(boxes) < _LARGEST_COORDINATE, axis=1)
    cells = to_cells(jnp.where(known[:, None], boxes, 0), strides)

    def bins(axis: int) -> tuple[Array, Array]:
        low, high, extent = cells[:, 1 - axis, None], cells[:, 3 - axis, None], extents[:, axis, None]
        length = jnp.maximum(high - low + 1, 1).astype(jnp.float32)
        step = divide(length, size[axis])
        index = jnp.arange(size[axis], dtype=jnp.float32)[None]
        first = low + jnp.floor(index * step).astype(jnp.int32)
        last = low + jnp.ceil((index + 1) * step).astype(jnp.int32)
        return jnp.clip(first, 0, extent), jnp.where(known[:, None], jnp.clip(last, 0, extent), 0)

    return *bins(0), *bins(1)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pool(shapes: tuple[tuple[int, int, int], ...], dtype: DTypeLike, pyramid: tuple[Array, ...], bins: _Bins) -> Array:
    return _pool_with_cells(pyramid, bins)[0]


def _pool_with_cells(pyramid: tuple[Array, ...], bins: _Bins) -> tuple[Array, Array]:
    """Maxima, and the row of the table of all levels that each came from (-1: none)."""
    channels = pyramid[0].shape[-1]
    table = jnp.concatenate([features.reshape(-1, channels) for features in pyramid])
    width, first_row = bins.width[:, None, None], bins.first_row[:, None, None]
    lines = jnp.maximum(bins.bottom - bins.top, 0)[:, :, None]
    columns = jnp.maximum(bins.right - bins.left, 0)[:, None, :]
    count = lines * columns

    def step(t, best):
        value, cell = best
        row = bins.top[:, :, None] + t // jnp.maximum(columns, 1)
        column = bins.left[:, None, :] + t % jnp.maximum(columns, 1)
        index = jnp.where(t < count, first_row + row * width + column, 0)
        candidate = table.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)
        better = (t < count)[..., None] & ((candidate > value) | (cell < 0))
        return jnp.where(better, candidate, value), jnp.where(better, index[..., None], cell)

    shape = (*count.shape, channels)
    start = jnp.zeros_like(table, shape=shape), jnp.full_like(table, -1, jnp.int32, shape)
    return lax.fori_loop(0, batch_max(count), step, start)


def _pool_forward(shapes, dtype, pyramid, bins):
    return _pool_with_cells(pyramid, bins)


def _pool_backward(shapes, dtype, cell, cotangent):
    starts, c = first_rows(shapes), shapes[0][2]
    channels = jnp.arange(c, dtype=jnp.int32)[None, None, None, :]
    size = starts[-1] * c
    index = jnp.where(cell < 0, size, cell * c + channels)
    zeros = jnp.zeros_like(cotangent, jnp.float32, (size,))
    table = zeros.at[index].add(cotangent.astype(jnp.float32), mode="drop").astype(dtype).reshape(-1, c)
    levels = jnp.split(table, starts[1:-1])
    return tuple(level.reshape(shape) for level, shape in zip(levels, shapes, strict=True)), None


_pool.defvjp(_pool_forward, _pool_backward)
