"""Matching candidate boxes (anchors, proposals) of one image to its ground truth."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.types import GroundTruth


@struct.dataclass
class Matches:
    """What each candidate is; neither positive nor negative means that it is left out of the losses."""

    # The ground truth with the highest IoU (the first of equals); meaningful where `iou` is over 0.
    gt: Int[Array, "*b n"]
    iou: Float[Array, "*b n"]
    positive: Bool[Array, "*b n"]
    negative: Bool[Array, "*b n"]


def match(
    boxes: Float[Array, "n 4"],
    gt: GroundTruth,
    *,
    high: float,
    low: float,
    low_quality: bool,
    boxes_valid: Bool[Array, " n"] | None = None,
    crowd_ignore: float = 0.5,
) -> Matches:
    """Positive at IoU `high` and over, negative below `low` (Faster R-CNN, section 3.1.2).

    With `low_quality`, all boxes that attain a ground truth's best IoU are positive too, ties included. They keep the
    ground truth that they themselves overlap most, as in Detectron2 and torchvision. We differ from both where nothing
    touches a ground truth: its best IoU is 0, which every box attains, and the libraries make all of them positive;
    here none becomes so.

    Crowd regions are no targets. A box that is not positive, and of which more than the share `crowd_ignore` lies in
    one of them, is left out (the libraries drop crowds and learn background there). Padding rows of `gt` change
    nothing, nor do boxes outside `boxes_valid`, which are neither positive nor negative. Memory does not grow with the
    number of ground truths.
    """
    boxes, gt_boxes = lax.stop_gradient((boxes, gt.boxes))
    if boxes_valid is None:
        boxes_valid = jnp.ones(boxes.shape[0], bool)
    boxes = jnp.where(boxes_valid[:, None], boxes, 0.0)
    gt_boxes = jnp.where(gt.valid[:, None], gt_boxes, 0.0)
    areas = box_ops.area(boxes)
    real, crowd = jnp.logical_and(gt.valid, ~gt.crowd), jnp.logical_and(gt.valid, gt.crowd)

    def affinity(i: Int[Array, ""]) -> Float[Array, " n"]:
        box = lax.dynamic_slice_in_dim(gt_boxes, i, 1)
        common = box_ops.intersection(boxes, box)[:, 0]
        # One division serves both measures: IoU with an object, the box's own share with a crowd region.
        return box_ops.ratio(common, jnp.where(crowd[i], areas, areas + box_ops.area(box) - common))

    return match_rows(affinity, real, crowd, boxes_valid, high, low, low_quality, crowd_ignore)


def match_rows(
    affinity: Callable[[Int[Array, ""]], Float[Array, " n"]],
    real: Bool[Array, " g"],
    crowd: Bool[Array, " g"],
    boxes_valid: Bool[Array, " n"],
    high: float,
    low: float,
    low_quality: bool,
    crowd_ignore: float = 0.5,
) -> Matches:
    """`match`, given row i of the matrix that is never built: IoU with object i, or share in crowd region i."""
    n = boxes_valid.shape[0]

    def visit(i: Int[Array, ""], best: tuple) -> tuple:
        iou, gt, attains, ignored = best
        # Held in memory once: two compilations of the row might round apart, and no box would attain the maximum.
        row = lax.optimization_barrier(jnp.where(boxes_valid, affinity(i), 0.0))
        better = real[i] & (row > iou)
        attains = attains | (real[i] & (row > 0) & (row == row.max()))
        ignored = ignored | (crowd[i] & (row > crowd_ignore))
        return jnp.where(better, row, iou), jnp.where(better, i, gt), attains, ignored

    nothing = jnp.zeros(n, bool)
    start = (jnp.zeros(n, jnp.float32), jnp.zeros(n, jnp.int32), nothing, nothing)
    used = jnp.where(real | crowd, jnp.arange(1, real.shape[0] + 1), 0).max(initial=0)
    iou, gt, attains, ignored = lax.fori_loop(0, used, visit, start)

    positive = (iou >= high) | (attains if low_quality else nothing)
    negative = (iou < low) & ~positive & ~ignored
    return Matches(gt=gt, iou=iou, positive=positive & boxes_valid, negative=negative & boxes_valid)
