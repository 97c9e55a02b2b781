"""RoIAlign over a feature pyramid: bilinear samples of every box, averaged in a grid of bins. For one image.

Mask R-CNN (He et al. 2017), section 3; the choice of level is equation 1 of Feature Pyramid Networks (Lin et al. 2017).
The samples are those of the kernels of Detectron2 and torchvision. Two implementations give the same numbers:

    gather   the levels laid end to end as one table, of which four rows are read for every sample; for CPU and GPU
    matmul   two interpolation matrices for every box and level; for TPU, where rows are read one after the other

Both are linear in the features and come with their transpose, so that the derivative keeps nothing but the boxes. As in
the references, no gradient flows to the boxes.
"""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jaxtyping import Float, Int

Pyramid = Sequence[Float[Array, "_h _w _c"]]

# A row with NaN or with coordinates of this many pixels only fills up the array: it is pooled to zeros.
_LARGEST_COORDINATE = 1e5
# Samples added to every bin in one pass over the output.
_TAPS_PER_PASS = 4
# Boxes whose gradients are scattered together. Few keep a CPU in its cache; many keep a GPU busy: in chunks of 64 the
# gradient of one image took 1.1 to 1.7 times as long on an H200.
_SCATTER_CHUNK_CPU = 16
_SCATTER_CHUNK_GPU = 512
# Boxes whose interpolation matrices exist at one time.
_MATMUL_CHUNK = 64


def assign_levels(
    boxes: Float[Array, "n 4"],
    min_level: int = 2,
    max_level: int = 5,
    canonical_size: int | float = 224,
    canonical_level: int = 4,
    eps: float = 1e-8,
) -> Int[Array, " n"]:
    """The pyramid level that each box is pooled from: `floor(4 + log2(sqrt(area) / 224 + eps))`, within the levels.

    The result lies in `min_level..max_level`: subtract `min_level` to index a pyramid. `eps` is 1e-8 in Detectron2 and
    1e-6 in torchvision, which adds it after the logarithm; that differs only within 1e-6 of a threshold. Boxes without
    an area, or with NaN, go to the lowest level.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    side = jnp.sqrt(jnp.where(area > 0, area, 0))
    level = jnp.floor(canonical_level + jnp.log2(divide(side, canonical_size) + eps))
    return jnp.clip(level, min_level, max_level).astype(jnp.int32)


def roi_align(
    pyramid: Pyramid,
    extents: Sequence[Int[Array, "2"]] | Int[Array, "l 2"],
    strides: Sequence[int | float] | Float[Array, " l"],
    boxes: Float[Array, "n 4"],
    *,
    size: int | tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    levels: Int[Array, " n"],
    implementation: Literal["gather", "matmul"] | None = None,
) -> Float[Array, "n _oh _ow _c"]:
    """Features of every box, [n, size, size, c], in the type of the pyramid; sums are float32.

    Args:
        pyramid: maps [h, w, c], finest first.
        extents: height and width, in cells, of the part of each map that belongs to the image. Samples are read as if
            the map ended there: up to one cell beyond it repeats the border, further out is zero. What the
            array holds beyond has no weight, but must be finite for `matmul`.
        strides: pixels to a cell, for each map.
        boxes: xyxy in pixels. A row with NaN or a coordinate beyond 1e5 gives zeros. The time of adaptive sampling
            follows the largest box, so clip boxes to the image.
        size: bins along the height and width of a box.
        sampling_ratio: samples along each side of a bin; 0 is adaptive, `ceil(side in cells / size)` for every box.
        aligned: shift by half a cell, so that cell i is centred at i + 0.5 (Detectron2); False is the original, which
            also makes every box at least one cell wide and high (torchvision).
        levels: index into the pyramid for every box.
        implementation: by default what suits the platform.
    """
    size = (size, size) if isinstance(size, int) else size
    spec = _Spec(size, sampling_ratio, tuple(features.shape for features in pyramid), pyramid[0].dtype)
    rois = _locate(
        spec, boxes, jnp.clip(levels, 0, len(pyramid) - 1), jnp.asarray(extents, jnp.int32), strides, aligned
    )
    return _pool(spec, implementation, tuple(pyramid), rois)


@custom_vmap
def batch_max(x: Array) -> Array:
    """The largest of all elements, under `vmap` that of the whole batch.

    For the number of turns of a loop: if that differed between images, `vmap` would copy the state at every turn.
    """
    return jnp.max(x, initial=0)


@batch_max.def_vmap
def _batch_max_of_batch(_size, _batched, x):
    return batch_max(x), False


class _Rois(NamedTuple):
    """Where each box is sampled, in cells of its own level; y, then x. All zeros is a box without samples."""

    start: Float[Array, "n 2"]
    bin: Float[Array, "n 2"]
    # Samples along each side of a bin.
    taps: Int[Array, "n 2"]
    # The part of the level that belongs to the image.
    extent: Int[Array, "n 2"]
    level: Int[Array, " n"]
    # The level's first row in the table of all levels, and how many rows make one line of it.
    first_row: Int[Array, " n"]
    width: Int[Array, " n"]

    @property
    def num_taps(self) -> Array:
        return self.taps[:, 0] * self.taps[:, 1]


class _Spec(NamedTuple):
    """What is known when the program is compiled."""

    size: tuple[int, int]
    ratio: int
    shapes: tuple[tuple[int, int, int], ...]
    dtype: Any

    @property
    def first_rows(self) -> list[int]:
        """Of every level in the table of all levels, and the number of rows at the end."""
        return first_rows(self.shapes)


def first_rows(shapes: Sequence[tuple[int, int, int]]) -> list[int]:
    """The first row of every level [h, w, c] in the table of all levels, and the number of rows at the end."""
    return list(accumulate((height * width for height, width, _ in shapes), initial=0))


def divide(x: Float[Array, "*n"], y: int | float) -> Float[Array, "*n"]:
    """A correctly rounded division, on which exact counts depend.

    By a constant the compiler would multiply with the rounded reciprocal, and 105 / 7 exceed 15; hence a divisor that
    it cannot know to be one.
    """
    return x / jnp.where(jnp.isnan(x), jnp.ones((), x.dtype), jnp.asarray(y, x.dtype))


def _locate(
    spec: _Spec, boxes: Array, levels: Array, extents: Array, strides: Sequence[int | float] | Array, aligned: bool
) -> _Rois:
    known = jnp.all(jnp.abs(boxes) < _LARGEST_COORDINATE, axis=1, keepdims=True)
    stride = jnp.asarray(strides, jnp.float32)[levels]
    cells = jnp.where(known, boxes, 0).astype(jnp.float32) / stride[:, None] - (0.5 if aligned else 0.0)
    start = cells[:, 1::-1]
    side = cells[:, :1:-1] - start
    if not aligned:
        side = jnp.maximum(side, 1)
    bins = jnp.stack([divide(side[:, axis], spec.size[axis]) for axis in (0, 1)], axis=1)
    taps = jnp.ceil(bins).astype(jnp.int32) if spec.ratio == 0 else jnp.full(bins.shape, spec.ratio, jnp.int32)
    some = known & jnp.all(taps > 0, axis=1, keepdims=True)
    first_row = jnp.asarray(spec.first_rows, jnp.int32)
    width = jnp.asarray([width for _, width, _ in spec.shapes], jnp.int32)
    return _Rois(start, bins, jnp.where(some, taps, 0), extents[levels], levels, first_row[levels], width[levels])


def _corners(position: Array, extent: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The two cells on either side of a position, each with its weight."""
    inside = (position >= -1) & (position <= extent.astype(jnp.float32))
    last = jnp.maximum(extent - 1, 0)
    position = jnp.clip(position, 0, last.astype(jnp.float32))
    low = jnp.floor(position).astype(jnp.int32)
    fraction = position - low.astype(jnp.float32)
    return (low, jnp.where(inside, 1 - fraction, 0)), (jnp.minimum(low + 1, last), jnp.where(inside, fraction, 0))


def _positions(rois: _Rois, axis: int, bins: int, tap: Array) -> Array:
    """Coordinate [n, bins] of one sample of every bin; `tap` counts along the axis."""
    share = (tap.astype(jnp.float32) + 0.5) / jnp.maximum(rois.taps[:, axis], 1).astype(jnp.float32)
    return (
        rois.start[:, axis, None]
        + (jnp.arange(bins, dtype=jnp.float32)[None] + share[:, None]) * rois.bin[:, axis, None]
    )


def _chunks(tree, chunk: int):
    """Leading axis n to [n / chunk, chunk], filled up with zeros."""
    n = jax.tree.leaves(tree)[0].shape[0]
    chunk = min(chunk, max(n, 1))

    def split(x):
        return jnp.pad(x, [(0, -n % chunk)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, chunk, *x.shape[1:])

    return jax.tree.map(split, tree)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pool(spec: _Spec, implementation: str | None, pyramid: tuple[Array, ...], rois: _Rois) -> Array:
    gather, matmul = partial(_gather, spec), partial(_matmul, spec)
    if implementation is None:
        return lax.platform_dependent(pyramid, rois, tpu=matmul, default=gather)
    return {"gather": gather, "matmul": matmul}[implementation](pyramid, rois)


def _pool_forward(spec, implementation, pyramid, rois):
    return _pool(spec, implementation, pyramid, rois), rois


def _pool_backward(spec, implementation, rois, cotangent):
    on_cpu = partial(_gather_transpose, spec, _SCATTER_CHUNK_CPU)
    on_gpu = partial(_gather_transpose, spec, _SCATTER_CHUNK_GPU)
    matmul = partial(_matmul_transpose, spec)
    if implementation is None:
        return lax.platform_dependent(cotangent, rois, cpu=on_cpu, tpu=matmul, default=on_gpu), None
    return {"gather": on_cpu, "matmul": matmul}[implementation](cotangent, rois), None


_pool.defvjp(_pool_forward, _pool_backward)


def _tap(rois: _Rois, t: Array, size: tuple[int, int]) -> list[tuple[Array, Array]]:
    """Rows and weights [n, oh, ow] of the four cells around every bin's t-th sample."""
    ny, nx = jnp.maximum(rois.taps, 1).T
    weight = jnp.where(t < rois.num_taps, 1 / (ny * nx).astype(jnp.float32), 0)
    lines, columns = (
        _corners(_positions(rois, axis, size[axis], tap), rois.extent[:, axis, None])
        for axis, tap in enumerate((t // nx, t % nx))
    )
    return [
        (
            (rois.first_row[:, None] + line * rois.width[:, None])[:, :, None] + column[:, None, :],
            (weight[:, None] * line_weight)[:, :, None] * column_weight[:, None, :],
        )
        for line, line_weight in lines
        for column, column_weight in columns
    ]


def _gather(spec: _Spec, pyramid: tuple[Array, ...], rois: _Rois) -> Array:
    table = jnp.concatenate([features.reshape(-1, features.shape[-1]) for features in pyramid])
    return _read(spec, table, rois).astype(spec.dtype)


def _gather_transpose(spec: _Spec, chunk: int, cotangent: Array, rois: _Rois) -> tuple[Array, ...]:
    table = _scatter(spec, chunk, spec.first_rows[-1], cotangent, rois).astype(spec.dtype)
    levels = jnp.split(table, spec.first_rows[1:-1])
    return tuple(level.reshape(shape) for level, shape in zip(levels, spec.shapes, strict=True))


def _read(spec: _Spec, table: Array, rois: _Rois) -> Array:
    """Float32 [n, oh, ow, c] from [rows, c]."""

    num_taps = spec.ratio**2 or batch_max(rois.num_taps)
    # Two turns at least: XLA dissolves a loop of one, and on a CPU it would then fuse the sum into the layout change of
    # the convolution that follows and weigh every sample anew for every channel (a third of a small training step).
    taps_per_pass = min(-(-(spec.ratio**2) // 2) or _TAPS_PER_PASS, _TAPS_PER_PASS)

    def add_pass(i, total):
        for k in range(taps_per_pass):
            for row, weight in _tap(rois, i * taps_per_pass + k, spec.size):
                values = table.at[row].get(mode="promise_in_bounds", wrap_negative_indices=False)
                total = total + weight[..., None] * values.astype(jnp.float32)
        return total

    zeros = jnp.zeros_like(table, jnp.float32, (rois.level.shape[0], *spec.size, table.shape[1]))
    return lax.fori_loop(0, -(-num_taps // taps_per_pass), add_pass, zeros)


def _scatter(spec: _Spec, chunk: int, rows: int, cotangent: Array, rois: _Rois) -> Array:
    """The transpose of `_read`: float32 [rows, c] from [n, oh, ow, c]."""

    def add_chunk(table, part):
        cotangent, rois = part

        def add(t, table):
            for row, weight in _tap(rois, t, spec.size):
                values = weight[..., None] * cotangent.astype(jnp.float32)
                # Samples without weight are left out. A GPU would else add their zeros to the same few rows in turn,
                # which with mostly empty slots for masks took half of a training step.
                row = jnp.where(weight != 0, row, rows)
                table = table.at[row].add(values, mode="drop", wrap_negative_indices=False)
            return table

        return lax.fori_loop(0, spec.ratio**2 or batch_max(rois.num_taps), add, table), None

    # Boxes with like numbers of samples together, so that few wait for the largest.
    order = jnp.argsort(-rois.num_taps)
    parts = _chunks(jax.tree.map(lambda x: x[order], (cotangent, rois)), chunk)
    return lax.scan(add_chunk, jnp.zeros_like(cotangent, jnp.float32, (rows, cotangent.shape[-1])), parts)[0]


def _interpolation(spec: _Spec, rois: _Rois, axis: int, length: int) -> Array:
    """Matrices [n, bins, length] that average the samples of every bin along one axis of a map."""
    cells = jnp.arange(length, dtype=jnp.int32)
    taps = rois.taps[:, axis]

    def add(t, total):
        position = _positions(rois, axis, spec.size[axis], jnp.broadcast_to(t, taps.shape))
        weight = jnp.where(t < taps, 1 / jnp.maximum(taps, 1).astype(jnp.float32), 0)
        for cell, share in _corners(position, rois.extent[:, axis, None]):
            hit = cells[None, None, :] == cell[:, :, None]
            total = total + jnp.where(hit, (weight[:, None] * share)[:, :, None], 0)
        return total

    start = jnp.zeros_like(taps, jnp.float32, (taps.shape[0], spec.size[axis], length))
    return lax.fori_loop(0, spec.ratio or batch_max(taps), add, start)


def _product(spec: _Spec, equation: str, a: Array, b: Array) -> Array:
    """A product in float32 of what is read in the maps' type.

    A matrix unit rounds its inputs to bfloat16 by itself, so that where the maps are bfloat16 it loses nothing to keep
    the matrices and what is between two products in it; float32 maps need several passes.
    """
    precision = lax.Precision.HIGHEST if spec.dtype == jnp.float32 else None
    a, b = a.astype(spec.dtype), b.astype(spec.dtype)
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=jnp.float32)


def _matrices(spec: _Spec, rois: _Rois, level: int) -> tuple[Array, Array]:
    """Those of one level, along its longer side and along the other; a box of another level has zeros."""
    here = rois._replace(taps=jnp.where((rois.level == level)[:, None], rois.taps, 0))
    axes = (1, 0) if _is_wide(spec, level) else (0, 1)
    first, second = (_interpolation(spec, here, axis, spec.shapes[level][axis]) for axis in axes)
    return first, second


def _is_wide(spec: _Spec, level: int) -> bool:
    """Whether columns are to be pooled before lines: the longer side first, which leaves less between the products."""
    height, width, _ = spec.shapes[level]
    return width > height


def _matmul(spec: _Spec, pyramid: tuple[Array, ...], rois: _Rois) -> Array:
    def pool(rois):
        total = 0
        for level, features in enumerate(pyramid):
            first, second = _matrices(spec, rois, level)
            wide = int(_is_wide(spec, level))
            between = _product(spec, "nal,lsc->nasc", first, features.swapaxes(0, wide))
            total = total + _product(spec, "nbs,nasc->nabc", second, between).swapaxes(1, 1 + wide)
        return total.astype(spec.dtype)

    pooled = lax.map(pool, _chunks(rois, _MATMUL_CHUNK))
    return pooled.reshape(-1, *pooled.shape[2:])[: rois.level.shape[0]]


def _matmul_transpose(spec: _Spec, cotangent: Array, rois: _Rois) -> tuple[Array, ...]:
    wide = [int(_is_wide(spec, level)) for level in range(len(spec.shapes))]

    def add(totals, part):
        cotangent, rois = part
        after = []
        for level, total in enumerate(totals):
            first, second = _matrices(spec, rois, level)
            between = _product(spec, "nbs,nabc->nasc", second, cotangent.swapaxes(1, 1 + wide[level]))
            after.append(total + _product(spec, "nal,nasc->lsc", first, between))
        return tuple(after), None

    shapes = [(w, h, c) if swap else (h, w, c) for (h, w, c), swap in zip(spec.shapes, wide, strict=True)]
    zeros = tuple(jnp.zeros_like(cotangent, jnp.float32, shape) for shape in shapes)
    totals, _ = lax.scan(add, zeros, _chunks((cotangent, rois), _MATMUL_CHUNK))
    return tuple(total.swapaxes(0, swap).astype(spec.dtype) for total, swap in zip(totals, wide, strict=True))
