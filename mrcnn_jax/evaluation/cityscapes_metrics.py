"""Cityscapes' figures for instances (Cordts et al., 2016): AP and AP50 of masks.

The arithmetic is the published script's (cityscapesscripts, evalInstanceLevelSemanticLabeling.py), and not that of
COCO. At each IoU threshold and for each class, over all images:

- An object counts if it is no group and has 100 pixels or more.
- A detection hits an object of its class if their IoU is above the threshold. Of several that hit one object the best
  score is a true positive, and the others are false ones. COCO instead lets each detection, best first, take what is
  left.
- A detection that hits nothing is a false positive, unless the share of its pixels in ignored places is above the same
  threshold. These are the image's ignored region, groups of the class, and its objects that are too small; a group
  that is too small counts twice. What hits a group or a small object is left out.
- AP is the area below the precisions at all distinct scores, joined by straight lines over recall and starting at
  precision 1 and recall 0: the script's "step-wise" weights amount to the trapezoidal rule. COCO instead samples the
  highest precision to the right of each of 101 recalls.

There is no limit to the number of detections.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as rle

from mrcnn_jax.evaluation import coco_json
from mrcnn_jax.evaluation.coco_metrics import Metrics

# As the script makes them: 0.55 and others differ from the decimals in the last bit.
_THRESHOLDS = np.arange(0.5, 1.0, 0.05)
_MIN_PIXELS = 100


@dataclass(frozen=True)
class _Category:
    """Objects and detections of one category, and the pairs of them that share pixels, in one image or all."""

    # Whether the object counts, or is a group or too small.
    counts: Bool[np.ndarray, " objects"]
    scores: Float[np.ndarray, " detections"]
    # Share of the detection's pixels in ignored places.
    ignored: Float[np.ndarray, " detections"]
    pair_object: Int[np.ndarray, " pairs"]
    pair_detection: Int[np.ndarray, " pairs"]
    pair_iou: Float[np.ndarray, " pairs"]


def score(gt: coco_json.Source, dt: coco_json.Source) -> Metrics:
    """Scores COCO results with masks against COCO ground truth as Cityscapes does.

    Groups are crowds; void is the `ignored_region` of an image's entry, polygons or RLE, where it has one. Sizes are
    pixels of masks, whatever "area" says. The script cannot score a class of which every detection is ignored at some
    threshold; here its AP is then 0. Ties need no order.

    Args:
        gt: ground truth, parsed or a path.
        dt: results, parsed or a path; may be empty.

    Returns:
        The figures AP and AP50: means over the categories that have an object that counts, and for AP over ten IoUs.

    Raises:
        UserError: see `coco_json.ground_truth` and `coco_json.detections`.
    """
    truth, notes = coco_json.ground_truth(gt, "segm")
    found, _ = coco_json.detections(dt, truth, "segm", use_categories=True)
    if not any("ignored_region" in image for image in truth["images"]):
        notes += ("no image has an ignored_region: detections in Cityscapes' void count as false",)
    table = np.array([_average_precisions(category) for category in _categories(truth, found)])
    table = table.reshape(-1, len(_THRESHOLDS))
    defined = table[~np.isnan(table[:, 0])]
    means = np.where(np.isnan(table[:, 0]), -1.0, table.mean(axis=1))
    return Metrics(
        kind="cityscapes",
        figures={
            "AP": float(defined.mean()) if len(defined) else -1.0,
            "AP50": float(defined[:, 0].mean()) if len(defined) else -1.0,
        },
        per_class={c["name"]: float(ap) for c, ap in zip(truth["categories"], means, strict=True)},
        num_images=len(truth["images"]),
        num_objects=len(truth["annotations"]),
        num_detections=len(found),
        notes=notes,
    )


def _categories(truth: dict, found: list[dict]) -> list[_Category]:
    """Counts what masks share, image by image."""
    objects, detections = _grouped(truth["annotations"]), _grouped(found)
    voids = {image["id"]: image["ignored_region"] for image in truth["images"] if "ignored_region" in image}
    ids = [image["id"] for image in truth["images"]]
    return [
        _joined([_overlaps(objects.get((i, k), []), detections.get((i, k), []), voids.get(i)) for i in ids])
        for k in (category["id"] for category in truth["categories"])
    ]


def _joined(images: list[_Category]) -> _Category:
    """One category of all images, from that of each."""
    images = [_overlaps([], [], None), *images]
    first_object = np.cumsum([0, *(len(image.counts) for image in images)])
    first_detection = np.cumsum([0, *(len(image.scores) for image in images)])
    return _Category(
        counts=np.concatenate([image.counts for image in images]),
        scores=np.concatenate([image.scores for image in images]),
        ignored=np.concatenate([image.ignored for image in images]),
        pair_object=np.concatenate([image.pair_object + first_object[i] for i, image in enumerate(images)]),
        pair_detection=np.concatenate([image.pair_detection + first_detection[i] for i, image in enumerate(images)]),
        pair_iou=np.concatenate([image.pair_iou for image in images]),
    )


def _grouped(entries: list[dict]) -> dict[tuple[int, int], list[dict]]:
    """By image and category."""
    grouped: dict[tuple[int, int], list[dict]] = {}
    for entry in entries:
        grouped.setdefault((entry["image_id"], entry["category_id"]), []).append(entry)
    return grouped


def _overlaps(objects: list[dict], detections: list[dict], void: dict | None) -> _Category:
    """One category of one image."""
    masks = [detection["segmentation"] for detection in detections]
    pixels = np.asarray(rle.area(masks), np.int64).reshape(-1)
    # One without a pixel is no detection.
    masks = [mask for mask, area in zip(masks, pixels, strict=True) if area]
    scores = np.array([d["score"] for d, area in zip(detections, pixels, strict=True) if area], np.float64)
    pixels = pixels[pixels > 0]

    truths = [o["segmentation"] for o in objects]
    group = np.array([o["iscrowd"] for o in objects], bool)
    size = np.asarray(rle.area(truths), np.int64).reshape(-1)
    small = size < _MIN_PIXELS
    shared = _shared(masks, truths, pixels)
    ignored = shared @ (group.astype(np.int64) + small)
    if void is not None:
        ignored = ignored + _shared(masks, [void], pixels)[:, 0]
    detection, object_ = np.nonzero(shared)
    both = shared[detection, object_]
    iou = both / (size[object_] + pixels[detection] - both)
    return _Category(~group & ~small, scores, ignored / pixels, object_, detection, iou)


def _shared(masks: list[dict], others: list[dict], pixels: Int[np.ndarray, " d"]) -> Int[np.ndarray, "d o"]:
    """Pixels that each mask shares with each other one: the share of a "crowd" is of the mask, which has `pixels`."""
    if not masks or not others:
        return np.zeros((len(masks), len(others)), np.int64)
    share = np.asarray(rle.iou(masks, others, [True] * len(others)))
    return np.rint(share * pixels[:, None]).astype(np.int64)


def _average_precisions(category: _Category) -> list[float]:
    """At each threshold; NaN where no object counts."""
    num_objects = int(category.counts.sum())
    if not num_objects:
        return [np.nan] * len(_THRESHOLDS)
    return [_average_precision(*_judged(category, threshold), num_objects) for threshold in _THRESHOLDS]


def _judged(category: _Category, threshold: float) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Scores of what is a true or false positive, and which it is."""
    hits = category.pair_iou > threshold
    free = np.ones(len(category.scores), bool)
    free[category.pair_detection[hits]] = False
    false = category.scores[free & (category.ignored <= threshold)]

    hits &= category.counts[category.pair_object]
    object_, scores = category.pair_object[hits], category.scores[category.pair_detection[hits]]
    order = np.lexsort((-scores, object_))
    best = np.diff(object_[order], prepend=-1) != 0
    return np.append(scores[order], false), np.append(best, np.zeros(len(false), bool))


def _average_precision(scores: Float[np.ndarray, " n"], true: Bool[np.ndarray, " n"], num_objects: int) -> float:
    order = np.argsort(-scores)
    # Where one score ends and a lower one begins.
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    hits = np.cumsum(true[order])[last]
    precision = np.append(1.0, hits / (last + 1))
    recall = np.append(0.0, hits / num_objects)
    return float(np.diff(recall) @ (precision[1:] + precision[:-1]) / 2)
