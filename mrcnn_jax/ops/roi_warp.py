"""RoIWarp, and RoIAlign by maxima: the two other rows of Mask R-CNN's table 2c. For one image; the caller vmaps.

RoIWarp (Dai et al., "Multi-task Network Cascades", 2016) rounds a box to whole cells as RoIPool does and then samples
bilinearly as RoIAlign does (He et al. 2017, section 3). Both are written by means of `roi_align` and have its gradient.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mrcnn_jax.ops.roi_align import Pyramid, roi_align
from mrcnn_jax.ops.roi_pool import to_cells


def whole_cells(boxes: Float[Array, "n 4"], strides: Float[Array, " n"]) -> Float[Array, "n 4"]:
    """The box of all cells that RoIPool gives to a box, in pixels: what RoIWarp samples, read with `aligned=True`.

    Both corner cells belong to it, so it is a cell wide and high at least. A row with NaN stays one.
    """
    cells = to_cells(jnp.nan_to_num(boxes, posinf=0, neginf=0), strides).astype(jnp.float32)
    low, high = cells[:, :2], jnp.maximum(cells[:, 2:], cells[:, :2]) + 1
    return jnp.where(jnp.isfinite(boxes), jnp.concatenate([low, high], axis=1) * strides[:, None], boxes)


def roi_align_max(
    pyramid: Pyramid,
    extents: Sequence[Int[Array, "2"]] | Int[Array, "l 2"],
    strides: Sequence[int | float] | Float[Array, " l"],
    boxes: Float[Array, "n 4"],
    *,
    size: int,
    sampling_ratio: int,
    aligned: bool,
    levels: Int[Array, " n"],
) -> Float[Array, "n _oh _ow _c"]:
    """`roi_align` with the largest sample of each bin in place of their mean; of equals the first gets the gradient.

    Arguments as there, but that the number of samples has to be known. Raises `ValueError` where it is 0, adaptive.
    """
    if sampling_ratio < 1:
        raise ValueError(
            "the largest of an adaptive number of samples is not implemented: give a sampling_ratio of 1 on"
        )
    # The samples of a bin are the middles of the bins of a grid that is finer by the ratio.
    samples = roi_align(
        pyramid, extents, strides, boxes, size=size * sampling_ratio, sampling_ratio=1, aligned=aligned, levels=levels
    )
    n, *_, c = samples.shape
    samples = samples.reshape(n, size, sampling_ratio, size, sampling_ratio, c).transpose(0, 1, 3, 5, 2, 4)
    samples = samples.reshape(n, size, size, c, -1)
    # Chosen by number: a maximum's own gradient compares values, which two compilations of a sample may round apart.
    first = jnp.argmax(samples, axis=-1, keepdims=True)
    return jnp.where(jnp.arange(samples.shape[-1])[None, None, None, None] == first, samples, 0).sum(axis=-1)
