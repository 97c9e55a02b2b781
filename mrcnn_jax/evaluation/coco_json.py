"""COCO ground truth and results as an evaluator needs them: checked, completed, and alike for both evaluators.

`pycocotools` and `hotcoco` trust their input: an annotation id of 0 counts as "not matched", a missing box as an AP of
0, a missing mask as one that fills the box, an unknown image as nothing at all. Here each of these is either mended,
and told, or refused by name. Only the fields that the metric reads are passed on.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask

from mrcnn_jax.errors import UserError

Source = Mapping | Sequence | str | Path


def ground_truth(source: Source, kind: str) -> tuple[dict, tuple[str, ...]]:
    """Reads COCO ground truth for one kind of score: `bbox`, `segm` or `keypoints`.

    Annotations are numbered from 1. A missing box or area is taken from the mask (without a mask, the area from the
    box). An object without a mask cannot be scored by mask: it becomes an ignore region (as a crowd is) of its box's
    shape, so that finding it is neither right nor wrong. One without keypoints counts as one with none labelled, which
    COCO ignores too. Passed on are Pascal VOC's `difficult` and, for masks, an image's `ignored_region` as RLE, which
    Cityscapes' metric reads.

    Returns the data set (`images`, `categories`, `annotations`) and one line for each sort of repair.

    Raises:
        UserError: the file is missing, not JSON or not COCO; an id is not an integer, used twice or points nowhere; an
            annotation lacks what cannot be completed.
    """
    name, data = _read(source, "ground truth")
    if not isinstance(data, Mapping) or not all(isinstance(data.get(k), list) for k in ("images", "categories")):
        raise UserError(f"{name}: not COCO ground truth: it needs the lists images, annotations and categories")
    if not isinstance(data.get("annotations"), list):
        raise UserError(f"{name}: no annotations: ground truth is needed, not a list of test images")
    images = _by_id(data["images"], name, "image")
    categories = _by_id(data["categories"], name, "category")
    counts: dict[str, int] = {}
    points = [a["keypoints"] for a in data["annotations"] if isinstance(a, Mapping) and a.get("keypoints")]
    num_points = len(points[0]) if points else 0
    annotations = []
    for number, annotation in enumerate(data["annotations"], 1):
        if not isinstance(annotation, Mapping):
            raise UserError(f"{name}: annotation number {number} is not an object of fields")
        where = f"{name}: annotation {annotation.get('id', f'number {number}')}"
        image = images.get(_key(annotation, "image_id"))
        category = categories.get(_key(annotation, "category_id"))
        if image is None or category is None:
            field = "image_id" if image is None else "category_id"
            raise UserError(
                f"{where}: {field} {annotation.get(field)!r} is not declared in this file: declare or remove it"
            )
        kept = {"id": number, "image_id": image["id"], "category_id": category["id"]}
        annotations.append(kept | _target(annotation, image, kind, num_points, where, counts))
    if kind == "segm" and annotations and counts.get(_NO_MASK) == len(annotations):
        raise UserError(f"{name}: no annotation has a segmentation: score boxes instead (bbox)")
    if kind == "keypoints" and annotations and not num_points:
        raise UserError(f"{name}: no annotation has keypoints: score boxes instead (bbox)")
    canonical = {
        "images": [_image(image, kind, name) for image in images.values()],
        "categories": [{"id": c["id"], "name": str(c.get("name", c["id"]))} for c in categories.values()],
        "annotations": annotations,
    }
    return canonical, tuple(f"{count} of {len(annotations)} objects {what}" for what, count in counts.items())


def detections(source: Source, truth: dict, kind: str, use_categories: bool) -> tuple[list[dict], tuple[str, ...]]:
    """Reads COCO results for one kind of score.

    The size of a detection, which sorts it into small, medium and large, is the area of its box where it has one, and
    else of its mask or of the extent of its keypoints: the rule of `pycocotools`. Detectron2 and torchvision therefore
    score masks from results without boxes, and so does `evaluate`.

    Returns the detections, and a note if the sizes of masks were those of boxes.

    Raises:
        UserError: the file is missing, not JSON or not a list of results; a result names an unknown image or (where
            categories matter) category, lacks what is scored, or has a score that is not a number.
    """
    name, entries = _read(source, "detections")
    if not isinstance(entries, list):
        raise UserError(f"{name}: COCO results are a list of detections, not {type(entries).__name__}")
    images = {image["id"]: image for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    kept, num_boxes = [], 0
    for index, entry in enumerate(entries):
        try:
            image_id, category_id, score = entry["image_id"], entry.get("category_id"), float(entry["score"])
            known_image, known_category = image_id in images, category_id in categories
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(f"{name}: detection {index} needs an image_id, a category_id and a score") from None
        if not known_image:
            raise UserError(f"{name}: detection {index}: image {image_id!r} is not in the ground truth: another split?")
        if not known_category:
            if use_categories or not categories:
                raise UserError(
                    f"{name}: detection {index}: category {category_id!r} is not in the ground truth "
                    f"(which has {_some(categories)}): results carry the data set's own ids"
                )
            category_id = min(categories)
        if not math.isfinite(score):
            raise UserError(f"{name}: detection {index}: score {score} is not a finite number")
        kept.append({"id": index + 1, "image_id": int(image_id), "category_id": int(category_id), "score": score})
    for index, (entry, to) in enumerate(zip(entries, kept, strict=True)):
        where = f"{name}: detection {index}"
        if kind == "segm":
            to["segmentation"] = _rle(entry.get("segmentation"), images[to["image_id"]], where)
            box = _box(entry["bbox"], where) if _has_box(entry) else None
            num_boxes += box is not None
            to["area"] = box[2] * box[3] if box else float(coco_mask.area(to["segmentation"]))
        elif kind == "keypoints":
            to |= _found_points(entry, where)
        else:
            to |= _found_box(entry, images[to["image_id"]], where)
        to["iscrowd"] = 0
    note = f"{num_boxes} of {len(kept)} masks come with boxes, whose area then tells small from large (not the mask's)"
    return kept, (note,) if num_boxes else ()


def _image(image: Mapping, kind: str, name: str) -> dict:
    kept = {k: image[k] for k in ("id", "height", "width") if k in image}
    if kind == "segm" and image.get("ignored_region"):
        kept["ignored_region"] = _rle(image["ignored_region"], image, f"{name}: ignored_region of image {image['id']}")
    return kept


_NO_MASK = "have no mask: detections there are neither right nor wrong"


def _target(
    annotation: Mapping, image: Mapping, kind: str, num_points: int, where: str, counts: dict[str, int]
) -> dict:
    """The fields of a ground-truth object that a kind of score reads."""

    def count(what: str) -> None:
        counts[what] = counts.get(what, 0) + 1

    crowd, area = int(bool(annotation.get("iscrowd"))), annotation.get("area")
    rle = None
    if annotation.get("segmentation") and (kind == "segm" or not _has_box(annotation) or area is None):
        rle = _rle(annotation["segmentation"], image, where)
    if _has_box(annotation):
        box = _box(annotation["bbox"], where)
    elif rle is not None:
        box = coco_mask.toBbox(rle).tolist()
        count("have no bbox: taken from the mask")
    else:
        raise UserError(f"{where}: neither a bbox nor a segmentation: add one or remove the annotation")
    if area is None:
        area = float(coco_mask.area(rle)) if rle is not None else box[2] * box[3]
        count("have no area: taken from the mask or box")
    target: dict[str, Any] = {"bbox": box, "area": float(area), "iscrowd": crowd}
    if annotation.get("difficult"):
        target["difficult"] = 1
    if kind == "segm":
        if rle is None:
            x, y, w, h = box
            rle = _rle([[x, y, x + w, y, x + w, y + h, x, y + h]], image, where)
            target["iscrowd"] = 1
            count(_NO_MASK)
        target["segmentation"] = rle
    elif kind == "keypoints":
        points = annotation.get("keypoints") or [0] * num_points
        if len(points) % 3 or len(points) != num_points:
            raise UserError(
                f"{where}: {len(points)} keypoint numbers, others have {num_points}: "
                "give x, y, visibility for each point of one skeleton"
            )
        labelled = sum(v > 0 for v in points[2::3])
        target |= {"keypoints": list(points), "num_keypoints": int(annotation.get("num_keypoints", labelled))}
    return target


def _has_box(entry: Mapping) -> bool:
    """Whether there is a bbox, which may be an array too; an empty one counts as none."""
    box = entry.get("bbox")
    return box is not None and not (hasattr(box, "__len__") and len(box) == 0)


def _found_box(entry: Mapping, image: Mapping, where: str) -> dict:
    """The box, and the area that tells small from large: where only a mask was found, the mask's, as in pycocotools."""
    if _has_box(entry):
        box = _box(entry["bbox"], where)
        return {"bbox": box, "area": box[2] * box[3]}
    rle = _rle(entry.get("segmentation"), image, f"{where}: no bbox, and")
    return {"bbox": coco_mask.toBbox(rle).tolist(), "area": float(coco_mask.area(rle))}


def _found_points(entry: Mapping, where: str) -> dict:
    points = entry.get("keypoints")
    if not points or len(points) % 3 or not np.isfinite(points).all():
        raise UserError(f"{where}: keypoints must be x, y, score for each point, all finite numbers")
    if _has_box(entry):
        box = _box(entry["bbox"], where)
    else:
        x, y = points[0::3], points[1::3]
        box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    return {"keypoints": list(points), "bbox": box, "area": box[2] * box[3]}


def _box(box: Sequence | np.ndarray, where: str) -> list[float]:
    try:
        x, y, w, h = (float(v) for v in box)
    except (TypeError, ValueError):
        raise UserError(f"{where}: bbox must be four numbers: x, y, width, height") from None
    if not (w >= 0 and h >= 0 and abs(x + y + w + h) < float("inf")):
        raise UserError(f"{where}: bbox {list(box)} must be finite, its width and height not negative")
    return [x, y, w, h]


def _rle(segmentation: Any, image: Mapping, where: str) -> dict:
    """Polygons, or RLE with its counts as a list, text or bytes -> compressed RLE with its counts as text."""
    if not segmentation:
        raise UserError(f"{where} no segmentation: add it, or score boxes only")
    if not isinstance(segmentation, Mapping):
        size = image.get("height"), image.get("width")
        if not all(size):
            raise UserError(f"{where}: image {image['id']} has no height and width, which polygons need: add them")
        if not isinstance(segmentation, Sequence) or not all(
            isinstance(polygon, Sequence) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation
        ):
            raise UserError(f"{where}: a polygon is a list of at least three points: x1, y1, x2, y2, x3, y3, ...")
        rle = coco_mask.merge(coco_mask.frPyObjects([list(map(float, p)) for p in segmentation], *size))
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    counts, size = segmentation.get("counts"), list(segmentation.get("size") or ())
    if not isinstance(counts, str | bytes | list) or len(size) != 2:
        raise UserError(f"{where}: a run-length mask needs size (height, width) and counts")
    expected = [image.get("height", size[0]), image.get("width", size[1])]
    if size != expected:
        raise UserError(f"{where}: a mask of {size} in an image of {expected} (height, width): they must be equal")
    if isinstance(counts, list):
        if sum(counts) != size[0] * size[1]:
            raise UserError(f"{where}: run lengths add up to {sum(counts)}, not to {size[0]} x {size[1]} pixels")
        counts = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"]
    return {"size": size, "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _read(source: Source, what: str) -> tuple[str, Any]:
    """The parsed data and the name by which errors call it."""
    if not isinstance(source, str | Path):
        return what, source
    try:
        return str(source), json.loads(Path(source).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{source}: cannot read the {what}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{source}: the {what} is not valid JSON: {error}") from None


def _by_id(entries: Sequence, name: str, what: str) -> dict[int, Mapping]:
    found: dict[int, Mapping] = {}
    for entry in entries:
        key = _key(entry, "id") if isinstance(entry, Mapping) else None
        if key is None:
            raise UserError(f"{name}: {what} {entry!r:.60}: id must be an integer")
        if key in found:
            raise UserError(f"{name}: {what} id {key} is used twice: ids must be unique")
        found[key] = {**entry, "id": key}
    return found


def _key(entry: Mapping, field: str) -> int | None:
    value = entry.get(field)
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _some(ids: set[int]) -> str:
    listed = sorted(ids)
    return ", ".join(map(str, listed[:5])) + (f", ... {listed[-1]}" if len(listed) > 5 else "") if listed else "none"


def corners(entries: Sequence[Mapping]) -> Float[np.ndarray, "n 4"]:
    """The boxes of annotations or results as xyxy."""
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
