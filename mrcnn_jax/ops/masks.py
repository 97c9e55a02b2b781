"""Masks on the device: targets cut from packed bitmaps, and the choice of a class. For one image; the caller vmaps.

The ground truth of an object is a bitmap of m x m cells stretched over its own box, eight cells to a byte. At m = 112
it is as close to the exact area rule as the polygon rasteriser of the reference.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, UInt8

# Samples whose bitmaps are unpacked at one time.
_CHUNK = 32


def unpack(packed: UInt8[Array, "*n m m8"]) -> Bool[Array, "*n m m"]:
    """Bitmaps from their bytes, as `numpy.unpackbits` along the last axis."""
    return jnp.unpackbits(packed, axis=-1).astype(bool)


def crop_targets(
    masks_packed: UInt8[Array, "g m m8"],
    gt_boxes: Float[Array, "g 4"],
    gt_index: Int[Array, " s"],
    boxes: Float[Array, "s 4"],
    size: int,
    soft: bool,
) -> Float[Array, "s _size _size"]:
    """What the mask head is to predict inside each sampled box: the object's mask, resampled to size x size.

    The bitmap is read bilinearly; outside the object's box there is nothing. As Detectron2's, a target is 0 or 1:
    whether the centre of its cell reads at least one half. As torchvision's, it is `soft`: the mean of four samples of
    the cell, each half a pixel to the lower right, since the reference pools with an RoIAlign that is not aligned. A
    sample whose boxes are not finite or have no area gives zeros. Bitmaps are unpacked for a few samples at a time, so
    that memory does not grow with the number of objects.
    """
    m = masks_packed.shape[-2]
    per_cell, shift = (2, 0.5) if soft else (1, 0.0)
    product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)

    def crop(sample: tuple[Array, Array]) -> Array:
        index, box = sample
        gt = gt_boxes[index]
        rows, columns = (
            _interpolation(gt[axis], gt[axis + 2], box[axis] + shift, box[axis + 2] + shift, m, size, per_cell)
            for axis in (1, 0)
        )
        return product(product(rows, unpack(masks_packed[index]).astype(jnp.float32)), columns.T)

    index = jnp.clip(gt_index, 0, masks_packed.shape[0] - 1)
    target = lax.map(crop, (index, boxes), batch_size=_CHUNK)
    return target if soft else (target >= 0.5).astype(jnp.float32)


def _interpolation(gt_low: Array, gt_high: Array, low: Array, high: Array, m: int, size: int, per_cell: int) -> Array:
    """Matrix [size, m] that reads a bitmap's axis, which spans gt_low..gt_high, in each of the cells of low..high."""
    known = (gt_high > gt_low) & (high > low) & jnp.isfinite(gt_high - gt_low) & jnp.isfinite(high - low)
    gt_low, gt_high, low, high = (jnp.where(known, x, i) for i, x in enumerate((gt_low, gt_high, low, high)))
    fraction = (jnp.arange(size * per_cell, dtype=jnp.float32) + 0.5) / (size * per_cell)
    position = (low + fraction * (high - low) - gt_low) * (m / (gt_high - gt_low)) - 0.5
    weight = jnp.maximum(1 - jnp.abs(position[:, None] - jnp.arange(m, dtype=jnp.float32)[None, :]), 0)
    return jnp.where(known, weight.reshape(size, per_cell, m).mean(axis=1), 0)


def select_class(mask_logits: Float[Array, "s m m k"], classes: Int[Array, " s"]) -> Float[Array, "s m m"]:
    """The mask of each sample's own class, 1..k; of the only one where masks are class-agnostic (k = 1)."""
    k = mask_logits.shape[-1]
    index = jnp.clip(classes - 1, 0, k - 1)
    return jnp.take_along_axis(mask_logits, index[:, None, None, None], axis=-1)[..., 0]
