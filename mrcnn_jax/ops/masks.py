"""Masks on the device: targets cut from packed bitmaps, and the choice of a class. For one image; the caller vmaps.

The ground truth of an object is a bitmap of m x m cells stretched over its own box, eight cells to a byte. At m = 112
it is as close to the exact area rule as the polygon rasteriser of the reference.
"""

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

    Each of the size x size centres reads the bitmap bilinearly; outside the object's box there is nothing. The result
    is 0 or 1 (at least one half, as in Detectron2) or, if `soft`, in between (as in torchvision, which instead averages
    a full-size bitmap over each cell). A sample whose boxes are not finite or have no area gives zeros. Bitmaps
    are unpacked for a few samples at a time, so that memory does not grow with the number of objects.
    """
    side = masks_packed.shape[-2]

    def crop(args: tuple[Array, Array]) -> Array:
        index, box = args
        bits = unpack(masks_packed[index]).astype(jnp.float32)
        gt = gt_boxes[index]
        rows = _interpolation(gt[1], gt[3], box[1], box[3], side, size)
        columns = _interpolation(gt[0], gt[2], box[0], box[2], side, size)
        return jnp.matmul(
            jnp.matmul(rows, bits, precision=lax.Precision.HIGHEST), columns.T, precision=lax.Precision.HIGHEST
        )

    index = jnp.clip(gt_index, 0, masks_packed.shape[0] - 1)
    target = lax.map(crop, (index, boxes), batch_size=_CHUNK)
    return target if soft else (target >= 0.5).astype(jnp.float32)


def _interpolation(gt_low: Array, gt_high: Array, low: Array, high: Array, cells: int, size: int) -> Array:
    """Matrix [size, cells] that reads a bitmap's axis, which spans gt_low..gt_high, at the centres of low..high."""
    known = (gt_high > gt_low) & (high > low) & jnp.isfinite(gt_high - gt_low) & jnp.isfinite(high - low)
    gt_low, gt_high, low, high = (jnp.where(known, x, i) for i, x in enumerate((gt_low, gt_high, low, high)))
    centres = low + (jnp.arange(size, dtype=jnp.float32) + 0.5) * ((high - low) / size)
    position = (centres - gt_low) * (cells / (gt_high - gt_low))
    weight = 1 - jnp.abs(position[:, None] - 0.5 - jnp.arange(cells, dtype=jnp.float32)[None, :])
    return jnp.where(known, jnp.maximum(weight, 0), 0)


def select_class(mask_logits: Float[Array, "s m m k"], classes: Int[Array, " s"]) -> Float[Array, "s m m"]:
    """The mask of each sample's own class, 1..k; of the only one where masks are class-agnostic (k = 1)."""
    k = mask_logits.shape[-1]
    index = jnp.clip(classes - 1, 0, k - 1)
    return jnp.take_along_axis(mask_logits, index[:, None, None, None], axis=-1)[..., 0]
