"""What the fits after the network see of an image: features of its regions, and how these lie to the objects."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from mrcnn_jax.data.overlaps import pairwise_iou
from mrcnn_jax.errors import UserError
from mrcnn_jax.progress import Progress

# Features are scaled to this mean norm, for which C and lambda were chosen (rcnn_scale_features.m).
MEAN_NORM = 20.0


@dataclass(frozen=True)
class Regions:
    """The n regions of one image: its ground-truth boxes first, then the proposals. Foreground classes are 1..k."""

    features: Float32[np.ndarray, "n f"]
    # The class of a ground-truth box, 0 for a proposal.
    classes: Int[np.ndarray, " n"]
    # The largest IoU with an object of each class, 0 where the image has none.
    overlaps: Float32[np.ndarray, "n k"]
    # The class of the object that the region overlaps most, 0 where the region overlaps none.
    target_classes: Int[np.ndarray, " n"]
    # (dx, dy, dw, dh) that turn the region into that object; 0 where there is none.
    deltas: Float32[np.ndarray, "n 4"]


def label_regions(
    proposals: Float[np.ndarray, "p 4"],
    features: Float32[np.ndarray, "n f"],
    gt_boxes: Float[np.ndarray, "g 4"],
    gt_classes: Int[np.ndarray, " g"],
    num_classes: int,
) -> Regions:
    """Compares the regions of one image with its objects.

    The reference (rcnn's roidb_from_voc.m, rcnn_train_bbox_regressor.m) counts pixels, so that its widths are one more.

    Args:
        proposals: xyxy in pixels, of the same image as `gt_boxes`: their scale does not matter, as long as it is one.
        features: n = g + p rows, first those of the ground-truth boxes, then those of the proposals.
        gt_boxes: the objects, without those that are a crowd or difficult.
        gt_classes: 1..k.
        num_classes: k.
    """
    boxes = np.concatenate([gt_boxes, proposals])
    classes = np.concatenate([gt_classes, np.zeros(len(proposals), gt_classes.dtype)])
    overlaps = np.zeros((len(boxes), num_classes), np.float32)
    if not len(gt_boxes):
        return Regions(features, classes, overlaps, classes, np.zeros((len(boxes), 4), np.float32))
    found = pairwise_iou(boxes, gt_boxes)
    for class_id, column in zip(gt_classes, found.T, strict=True):
        overlaps[:, class_id - 1] = np.maximum(overlaps[:, class_id - 1], column)
    nearest, touches = found.argmax(axis=1), found.max(axis=1) > 0
    deltas = np.where(touches[:, None], encode(gt_boxes[nearest], boxes), 0).astype(np.float32)
    return Regions(features, classes, overlaps, np.where(touches, gt_classes[nearest], 0), deltas)


def encode(boxes: Float[np.ndarray, "n 4"], reference: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """`mrcnn_jax.ops.boxes.encode` with weights of 1, in NumPy: JAX would compile it for every number of regions."""
    sides, reference_sides = (each[:, 2:] - each[:, :2] for each in (boxes, reference))
    centers, reference_centers = boxes[:, :2] + 0.5 * sides, reference[:, :2] + 0.5 * reference_sides
    sides, reference_sides = (np.where(each > 0, each, 1) for each in (sides, reference_sides))
    shifts = (centers - reference_centers) / reference_sides
    return np.concatenate([shifts, np.log(sides / reference_sides)], axis=1)


def check_finite(features: Float32[np.ndarray, "n f"], image: int) -> None:
    """Raises a UserError where a row has no norm; the message counts images from 1, and `image` from 0."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.linalg.norm(features, axis=1)).all()
    if not finite:
        raise UserError(
            f"features of image {image + 1} (in the order of the data set) are not finite: check the weights of the "
            "network that they are from"
        )


def feature_scale(images: Iterable[Regions], num_images: int) -> float:
    """What features are multiplied by, so that the mean norm of those of `images` is `MEAN_NORM`; 1 where all are 0.

    Args:
        images: the regions of some images.
        num_images: how many there are, for the time that is left.

    Raises:
        UserError: features are not finite.
    """
    norms, num_regions = 0.0, 0
    with Progress("features: their scale", num_images) as progress:
        for place, regions in enumerate(images):
            check_finite(regions.features, place)
            norms += float(np.linalg.norm(regions.features, axis=1).sum(dtype=np.float64))
            num_regions += len(regions.features)
            progress.update(place + 1)
    return MEAN_NORM * num_regions / norms if norms > 0 else 1.0
