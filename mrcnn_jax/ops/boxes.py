"""Boxes of one image: area, overlap, the R-CNN box coding, clipping and flipping.

Boxes are `xyxy` in continuous pixels, width is `x2 - x1` (Detectron2 and torchvision; the Caffe code added one).
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Num

from mrcnn_jax.types import Leaf

# A network may ask for no box more than 62.5 times its reference: exp() of a wild delta would overflow.
MAX_LOG_SCALE = math.log(1000 / 16)


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Width times height, in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Common area of every pair, in square pixels; 0 for boxes that only touch."""
    a, b = a[:, None, :], b[None, :, :]
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    return jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)


def iou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of every pair; 0 where they share no area, and never above 1."""
    common = intersection(a, b)
    return ratio(common, area(a)[:, None] + area(b)[None, :] - common)


def overlap(boxes: Float[Array, "n 4"], regions: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Share of each box that lies in each region, COCO's measure for crowd regions; 0 for boxes of no area."""
    common = intersection(boxes, regions)
    return ratio(common, area(boxes)[:, None])


def ratio(common: Float[Array, "*n"], whole: Float[Array, "*#n"]) -> Float[Array, "*n"]:
    """`common / whole`, 0 where nothing is common. Rounding may lift equal boxes a hair above 1: held at 1."""
    shared = common > 0
    return jnp.where(shared, jnp.minimum(common / jnp.where(shared, whole, 1.0), 1.0), 0.0)


def encode(
    boxes: Float[Array, "*n 4"], reference: Float[Array, "*#n 4"], weights: Sequence[float | int]
) -> Float[Array, "*n 4"]:
    """The (dx, dy, dw, dh) that turn `reference` into `boxes`, times `weights` (R-CNN, appendix C).

    A side without length counts as one pixel, so that the result is finite for any finite row.
    """
    x, y, w, h = _center(boxes)
    rx, ry, rw, rh = _center(reference)
    w, h, rw, rh = (jnp.where(side > 0, side, 1.0) for side in (w, h, rw, rh))
    deltas = ((x - rx) / rw, (y - ry) / rh, jnp.log(w / rw), jnp.log(h / rh))
    return jnp.stack([weight * delta for weight, delta in zip(weights, deltas, strict=True)], axis=-1)


def decode(
    deltas: Float[Array, "*n 4"],
    reference: Float[Array, "*#n 4"],
    weights: Sequence[float | int],
    max_log_scale: float = MAX_LOG_SCALE,
) -> Float[Array, "*n 4"]:
    """Inverse of `encode`, with dw and dh held at `max_log_scale` and below.

    Deltas of k classes are `[n k 4]` with a reference `[n 1 4]`.
    """
    rx, ry, rw, rh = _center(reference)
    dx, dy, dw, dh = (deltas[..., i] / weight for i, weight in enumerate(weights))
    x, y = dx * rw + rx, dy * rh + ry
    half_w = 0.5 * jnp.exp(jnp.minimum(dw, max_log_scale)) * rw
    half_h = 0.5 * jnp.exp(jnp.minimum(dh, max_log_scale)) * rh
    return jnp.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=-1)


def clip(boxes: Float[Array, "*n 4"], size: Num[Leaf, " 2"] | Sequence[float | int]) -> Float[Array, "*n 4"]:
    """Cut boxes at the border of an image of `size` (height, width)."""
    height, width = (jnp.asarray(side).astype(boxes.dtype) for side in (size[0], size[1]))
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return jnp.stack(
        [jnp.clip(x1, 0, width), jnp.clip(y1, 0, height), jnp.clip(x2, 0, width), jnp.clip(y2, 0, height)], axis=-1
    )


def flip(boxes: Float[Array, "*n 4"], width: Num[Leaf, ""] | float | int) -> Float[Array, "*n 4"]:
    """Mirror boxes left to right in an image `width` pixels wide."""
    width = jnp.asarray(width).astype(boxes.dtype)
    return jnp.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], axis=-1)


def _center(boxes: Float[Array, "*n 4"]) -> tuple[Float[Array, "*n"], ...]:
    """Center x, center y, width and height."""
    w, h = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * w, boxes[..., 1] + 0.5 * h, w, h
