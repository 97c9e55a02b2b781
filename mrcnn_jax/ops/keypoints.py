"""Keypoints and heatmaps: the cell that a head is to predict, and the point that a heatmap shows. For one image.

Keypoints are x, y in continuous pixels, where pixel i covers [i, i + 1). Detectron2 has them so, after adding the half
pixel that COCO's numbers lack; torchvision runs the same formulas on COCO's numbers as they are.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from mrcnn_jax.ops.roi_align import batch_max

Score = Literal["probability", "logit"]

# Boxes whose heatmaps are enlarged together, and the side of the piece of the enlarged maps that exists at one time.
_CHUNK = 10
_BLOCK = 128
# A row with a longer side, or that is not finite, only fills up the array. The square fits into 32 bits.
_LARGEST_SIDE = 1 << 15


def heatmap_targets(
    keypoints: Float[Array, "s j 3"], boxes: Float[Array, "s 4"], size: int
) -> tuple[Int[Array, "s j"], Bool[Array, "s j"]]:
    """The cell, `row * size + column`, of each keypoint in the size x size heatmap of its RoI, and whether it has one.

    The cell is `floor((x - x1) * size / width)`; a point on the far border belongs to the last one. A point outside its
    box or of visibility 0 is not labelled, and its cell is 0 (Mask R-CNN, section 5; `keypoints_to_heatmap` of
    Detectron2 and torchvision). Unlike there, a point within rounding of the far border counts as inside, and a box
    without an area labels nothing.

    Args:
        keypoints: x, y in pixels and COCO's visibility, of the object of each RoI.
        boxes: the RoIs, xyxy in pixels.
    """
    points, low, high = keypoints[..., :2], boxes[:, None, :2], boxes[:, None, 2:]
    inside = (points >= low) & (points <= high) & (high > low)
    labelled = jnp.all(inside, axis=-1) & (keypoints[..., 2] > 0)
    cell = jnp.minimum(jnp.floor((points - low) * (size / (high - low))), size - 1)
    cell = jnp.where(labelled[..., None], cell, 0).astype(jnp.int32)
    return cell[..., 1] * size + cell[..., 0], labelled


def decode(
    logits: Float[Array, "d j m m"], boxes: Float[Array, "d 4"], score: Score = "probability"
) -> Float[Array, "d j 3"]:
    """Keypoints x, y in pixels, each with its score: where its heatmap is highest once enlarged to its box.

    As Detectron2 and torchvision (`heatmaps_to_keypoints`): a box is made at least one pixel wide and high, the heatmap
    is resized bicubically to its sides rounded up, and the middle of the highest cell, the first in reading order among
    equals, is mapped back to the box. The score is the logit there (torchvision) or its probability (Detectron2): the
    exponential over the sum of those of the heatmap before it was enlarged, so that it does not depend on the size of
    the box and may exceed 1.

    The enlarged maps exist only in pieces, so that memory does not grow with the boxes; the time follows their areas. A
    row whose box is not finite or has a side beyond 32,768 gives zeros.

    Args:
        logits: finite.
        boxes: xyxy in pixels.
        score: 'probability' or 'logit'.
    """
    logits = logits.astype(jnp.float32)
    sides = jnp.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    known = jnp.all(jnp.isfinite(boxes), axis=1) & jnp.all(sides <= _LARGEST_SIDE, axis=1)
    sides = jnp.where(known[:, None], sides, 1)
    cells = jnp.ceil(sides).astype(jnp.int32)
    # Boxes of like sizes together, so that few wait for the largest.
    order = jnp.argsort(cells[:, 0] * cells[:, 1])
    peaks = lax.map(lambda i: _peak(logits[i], cells[i, 0], cells[i, 1]), order, batch_size=_CHUNK)
    value, place = jax.tree.map(lambda x: x[jnp.argsort(order)], peaks)

    middle = place.astype(jnp.float32) + 0.5
    points = middle * (sides / cells.astype(jnp.float32))[:, None] + boxes[:, None, :2]
    if score == "probability":
        value = jnp.exp(value - jax.nn.logsumexp(logits, axis=(2, 3)))
    return jnp.where(known[:, None, None], jnp.concatenate([points, value[..., None]], axis=-1), 0)


def _peak(heatmaps: Array, width: Array, height: Array) -> tuple[Array, Array]:
    """The highest value [j], and its place [j, 2] as x, y, of heatmaps [j, m, m] resized to height x width."""
    j, m, _ = heatmaps.shape
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    row_blocks, column_blocks = (batch_max((side + _BLOCK - 1) // _BLOCK) for side in (height, width))
    none = jnp.full_like(heatmaps, -jnp.inf, shape=(j,)), jnp.zeros_like(heatmaps, jnp.int32, (j,))

    def block_of(block: Array, side: Array) -> Array:
        # The last cell again and again where the block reaches over the end: that changes neither maximum nor place.
        return jnp.minimum(block * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32), side - 1)

    def seek_row(block: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        y = block_of(block, height)
        lines = product("yr,jrc->jyc", _cubic(y, height, m), heatmaps)

        def along(block: Array, highest: Array) -> Array:
            piece = product("jyc,xc->jyx", lines, _cubic(block_of(block, width), width, m))
            return jnp.maximum(highest, jnp.max(piece, axis=2))

        lowest = jnp.full_like(lines, -jnp.inf, shape=(j, _BLOCK))
        return _first_highest(best, lax.fori_loop(0, column_blocks, along, lowest), y)

    value, row = lax.fori_loop(0, row_blocks, seek_row, none)
    line = product("jr,jrc->jc", _cubic(row, height, m), heatmaps)

    def seek_column(block: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        x = block_of(block, width)
        return _first_highest(best, product("jc,xc->jx", line, _cubic(x, width, m)), x)

    _, column = lax.fori_loop(0, column_blocks, seek_column, none)
    return value, jnp.stack([column, row], axis=-1)


def _first_highest(best: tuple[Array, Array], values: Array, cells: Array) -> tuple[Array, Array]:
    """The highest value [j] so far and its cell, after a look at values [j, n] of the cells [n] that follow."""
    value, cell = jnp.max(values, axis=1), cells[jnp.argmax(values, axis=1)]
    better = value > best[0]
    return jnp.where(better, value, best[0]), jnp.where(better, cell, best[1])


def _cubic(cells: Array, length: Array, m: int) -> Array:
    """Matrix [cells, m] that reads cells of an axis resized from m to `length`: Keys' cubic convolution, a = -0.75.

    As torch's `interpolate` with `align_corners=False`: the border repeats beyond it, and reducing does not smooth.
    """
    position = (cells.astype(jnp.float32) + 0.5) * (m / length.astype(jnp.float32)) - 0.5
    first = jnp.floor(position)
    t = position - first
    weights = (_far(1 + t), _near(t), _near(1 - t), _far(2 - t))
    matrix = jnp.zeros_like(position, shape=(len(cells), m))
    for tap, weight in enumerate(weights, start=-1):
        source = jnp.clip(first.astype(jnp.int32) + tap, 0, m - 1)
        hit = source[:, None] == jnp.arange(m, dtype=jnp.int32)[None, :]
        matrix = matrix + jnp.where(hit, weight[:, None], 0)
    return matrix


def _near(x: Array) -> Array:
    """The kernel at a distance of up to 1."""
    return (1.25 * x - 2.25) * x * x + 1


def _far(x: Array) -> Array:
    """The kernel at a distance of 1 to 2."""
    return ((-0.75 * x + 3.75) * x - 6) * x + 3
