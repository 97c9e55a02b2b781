"""From the padded detections of a model to results in the pixels of the image as it was given.

NumPy only: worker processes import this file and little else.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mrcnn_jax.conventions import Rule
from mrcnn_jax.evaluation.paste import encode_window, paste
from mrcnn_jax.files import whole_file


@dataclass(frozen=True)
class ImageDetections:
    """What was found in one image, in its own pixels, best score first."""

    boxes: Float[np.ndarray, "d 4"]
    scores: Float[np.ndarray, " d"]
    # 1..K
    classes: Int[np.ndarray, " d"]
    # Probabilities inside the box, or (from `to_image`) the object's pixels.
    masks: Float[np.ndarray, "d m m"] | Bool[np.ndarray, "d h w"] | None = None
    # x, y in continuous pixels and a score.
    keypoints: Float[np.ndarray, "d j 3"] | None = None


def rescale(
    detections: Any, size: Sequence[int], original_size: Sequence[int], rule: Rule | None = "detectron2"
) -> ImageDetections:
    """The valid detections of one image, from pixels of the resized to pixels of the original image.

    As Detectron2, boxes are clipped to the original image and those that become empty are dropped; with the rule
    `torchvision`, as that library, neither is done (there the model clips before), and keypoints, which it has as
    COCO's indices of pixels, get half a pixel.

    Args:
        detections: `Detections` of one image, as NumPy arrays.
        size, original_size: height and width of the image as the model saw it (without padding), and of the file.
    """
    (height, width), (full_height, full_width) = map(int, size), map(int, original_size)
    keep = np.asarray(detections.valid)
    ratio = np.array([full_width / width, full_height / height], np.float32)
    boxes = np.asarray(detections.boxes, np.float32)[keep] * np.tile(ratio, 2)
    rows = np.flatnonzero(keep)
    if rule != "torchvision":
        boxes = np.clip(boxes, 0, np.array([full_width, full_height] * 2, np.float32))
        solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, rows = boxes[solid], rows[solid]
    keypoints = None
    if detections.keypoints is not None:
        keypoints = np.asarray(detections.keypoints, np.float32)[rows] * np.append(ratio, np.float32(1))
        if rule == "torchvision":
            keypoints[..., :2] += np.float32(0.5)
    return ImageDetections(
        boxes=boxes,
        scores=np.asarray(detections.scores, np.float32)[rows],
        classes=np.asarray(detections.classes)[rows],
        masks=None if detections.masks is None else np.asarray(detections.masks)[rows],
        keypoints=keypoints,
    )


def to_image(
    detections: Any, size: Sequence[int], original_size: Sequence[int], *, paste_rule: Rule | None = "detectron2"
) -> ImageDetections:
    """`rescale`, with each mask as the pixels of the object: bool [d, height, width]."""
    found = rescale(detections, size, original_size, paste_rule)
    if found.masks is None:
        return found
    height, width = map(int, original_size)
    masks = np.zeros((len(found.boxes), height, width), bool)
    for full, mask, box in zip(masks, found.masks, found.boxes, strict=True):
        window, (y, x) = paste(mask, box, height, width, paste_rule or "detectron2")
        full[y : y + window.shape[0], x : x + window.shape[1]] = window
    return ImageDetections(found.boxes, found.scores, found.classes, masks, found.keypoints)


def coco_results(
    found: ImageDetections,
    image_id: int,
    original_size: Sequence[int],
    category_ids: Sequence[int],
    *,
    paste_rule: Rule = "detectron2",
) -> list[dict]:
    """One image's results as COCO has them: `bbox` (x, y, width, height), and any `segmentation` and `keypoints`.

    Keypoints lose half a pixel: COCO's are indices of pixels, in whose middle the point lies.

    Args:
        found: from `rescale`: masks as probabilities inside the box.
        original_size: height and width of the image.
        category_ids: the data set's own id of class 1, 2, ...
    """
    height, width = map(int, original_size)
    boxes = found.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    results = []
    for i, (box, score, label) in enumerate(
        zip(boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    ):
        result = {"image_id": int(image_id), "category_id": int(category_ids[label - 1]), "bbox": box, "score": score}
        if found.masks is not None:
            window, (y, x) = paste(found.masks[i], found.boxes[i], height, width, paste_rule)
            result["segmentation"] = encode_window(window, y, x, height, width)
        if found.keypoints is not None:
            points = found.keypoints[i].astype(np.float64) - np.array([0.5, 0.5, 0.0])
            result["keypoints"] = points.ravel().tolist()
        results.append(result)
    return results


def write_json(data: Any, path: Path) -> None:
    """Writes a file that is either complete or not there.

    Raises:
        UserError: the file cannot be written; what was there before stays.
    """
    text = json.dumps(data)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
