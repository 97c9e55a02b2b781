"""IoU of boxes on the host."""

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask


def pairwise_iou(boxes: Float[np.ndarray, "n 4"], others: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """IoU of each box with each other one, xyxy, by pycocotools."""
    if not (len(boxes) and len(others)):
        # pycocotools' answer has no shape then.
        return np.zeros((len(boxes), len(others)))
    return np.asarray(coco_mask.iou(_xywh(boxes), _xywh(others), [0] * len(others)))


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
