"""Pascal VOC's figures: average precision of boxes.

After Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010, and the development kit
(`VOCevaldet.m`), with the figures of Detectron2's `PascalVOCDetectionEvaluator`.

VOC writes boxes as whole pixels, the last one included, and adds one to each side: an object from xmin to xmax is
xmax - xmin + 1 wide. As continuous boxes, [xmin - 1, xmax], that is x2 - x1: its overlap is the plain IoU, taken here.
Boxes of a COCO file whose width was made as xmax - xmin lack that pixel, and are scored as they stand.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from mrcnn_jax.evaluation import coco_json
from mrcnn_jax.evaluation.coco_metrics import Metrics, class_labels

Rule = Literal["voc07", "voc12"]

# .50:.05:.95, as whole numbers over 100 so that .55 is the number that is written .55.
_THRESHOLDS = np.arange(50, 100, 5) / 100


def score(gt: coco_json.Source, dt: coco_json.Source, rule: Rule) -> Metrics:
    """AP (the mean over IoU .50:.05:.95), AP50 and AP75, means over the classes, and AP50 of each class.

    In the order of their scores, over all images, detections take the object of their class that they overlap most. A
    detection is right where that overlap reaches the threshold and the object is not taken yet, and wrong otherwise;
    where the object is difficult, it is neither. (So are detections of crowds, which VOC does not know.) There is no
    limit to the number of detections. Detectron2 wants the overlap to exceed the threshold, the kit to reach it. Of the
    11 recalls .3, .6 and .7 have to be exceeded, as in Detectron2, by a rounding of theirs.

    A class without objects that count has an AP of -1 and is left out of the means.

    Args:
        gt: COCO ground truth, parsed or a path; difficult objects have `"difficult": 1`.
        dt: COCO results, parsed or a path; may be empty. Of equal scores, the first comes first.
        rule: "voc07" samples precision at 11 recalls (VOC2007), "voc12" takes the area below it (from VOC2010 on).

    Raises:
        UserError: see `coco_json.ground_truth` and `coco_json.detections`.
    """
    truth, notes = coco_json.ground_truth(gt, "bbox")
    found, more_notes = coco_json.detections(dt, truth, "bbox", use_categories=True)
    labels = class_labels(truth["categories"])
    table = np.array([_class_ap(truth["annotations"], found, number, rule) for number in labels])
    table = table.reshape(-1, len(_THRESHOLDS))
    counted = table[table[:, 0] >= 0]
    means = counted.mean(axis=0) if len(counted) else np.full(len(_THRESHOLDS), -1.0)
    return Metrics(
        kind=rule,
        figures={"AP": float(means.mean()), "AP50": float(means[0]), "AP75": float(means[5])},
        per_class=dict(zip(labels.values(), table[:, 0].tolist(), strict=True)),
        num_images=len(truth["images"]),
        num_objects=len(truth["annotations"]),
        num_detections=len(found),
        notes=notes + more_notes,
        class_figure="AP50",
    )


def _class_ap(annotations: list[dict], found: list[dict], category: int, rule: Rule) -> list[float]:
    """AP of one class at each threshold."""
    objects = [one for one in annotations if one["category_id"] == category]
    # By image, so that each image's are a run.
    objects.sort(key=lambda one: one["image_id"])
    results = [one for one in found if one["category_id"] == category]
    results.sort(key=lambda one: -one["score"])
    ignored = np.array([bool(one.get("difficult") or one["iscrowd"]) for one in objects], bool)
    num_objects = int((~ignored).sum())
    if not num_objects:
        return [-1.0] * len(_THRESHOLDS)
    overlap, taken = _best_overlaps(objects, results)
    return [_ap(*_counts(overlap, taken, ignored, threshold), num_objects, rule) for threshold in _THRESHOLDS]


def _best_overlaps(objects: list[dict], results: list[dict]) -> tuple[Float[np.ndarray, " d"], Int[np.ndarray, " d"]]:
    """For each result the largest IoU with an object of its image, and the row of that object; 0 and 0 without one."""
    images = np.array([one["image_id"] for one in objects])
    image = np.array([one["image_id"] for one in results], images.dtype)
    first, end = np.searchsorted(images, image), np.searchsorted(images, image, side="right")
    boxes = coco_json.corners(objects)
    box = coco_json.corners(results)
    overlap, row = np.zeros(len(results)), np.zeros(len(results), int)
    # The first object of every image, then the second, and so on.
    for place in range(int((end - first).max(initial=0))):
        rest = np.flatnonzero(first + place < end)
        other = first[rest] + place
        iou = _iou(box[rest], boxes[other])
        better = iou > overlap[rest]
        overlap[rest[better]], row[rest[better]] = iou[better], other[better]
    return overlap, row


def _iou(a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    """IoU of each box of `a` with the same row of `b`; 0 where neither has an area."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    shared = np.maximum(high - low, 0).prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
    return shared / np.where(union > 0, union, 1)


def _counts(
    overlap: Float[np.ndarray, " d"], row: Int[np.ndarray, " d"], ignored: Bool[np.ndarray, " n"], threshold: float
) -> tuple[Int[np.ndarray, " d"], Int[np.ndarray, " d"]]:
    """How many are right, and how many wrong, among the best 1, 2, ... results."""
    hit = np.flatnonzero(overlap >= threshold)
    of_ignored = hit[ignored[row[hit]]]
    hit = hit[~ignored[row[hit]]]
    # Of the results that take one object, the best.
    right = np.zeros(len(overlap), bool)
    right[hit[np.unique(row[hit], return_index=True)[1]]] = True
    wrong = ~right
    wrong[of_ignored] = False
    return np.cumsum(right), np.cumsum(wrong)


def _ap(right: Int[np.ndarray, " d"], wrong: Int[np.ndarray, " d"], num_objects: int, rule: Rule) -> float:
    """Average precision, where precision at a recall is the best at that recall or any above."""
    precision = right / np.maximum(right + wrong, 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if rule == "voc07":
        # As Girshick's and Detectron2's code has it, where 3 * 0.1 is a little more than 3 / 10.
        reached = np.searchsorted(right / num_objects, np.arange(11) * 0.1)
        return float(envelope[reached].mean())
    gained = np.diff(right, prepend=0)
    return float((envelope[:-1] * gained).sum() / num_objects)
