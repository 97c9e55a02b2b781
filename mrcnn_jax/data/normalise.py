"""The categories and annotations of any exporter's COCO JSON to plain arrays.

What can be mended is mended and reported, what cannot is dropped and reported, and what would make a run meaningless is
reported as an error. See `coco.load` for the list.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan

import numpy as np

from mrcnn_jax.data import segmentations
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.data.report import Report

# Beyond this share, references to unknown images or categories are an error and not a few slips.
MAX_UNKNOWN = 0.05
# COCO has about 1% of crowds. CVAT and Datumaro mark every mask painted with a brush as one.
MAX_CROWD = 0.10
# Too few to tell a habit of the exporter from a few true crowds.
FEW = 10


@dataclass
class Objects:
    """The n objects that are left, sorted by the row of their image."""

    rows: np.ndarray  # int64 [n], row of the image
    classes: np.ndarray  # int32 [n], 1..K
    boxes: np.ndarray  # float32 [n, 4], xyxy
    crowd: np.ndarray  # bool [n]
    areas: np.ndarray  # float32 [n]
    ids: np.ndarray  # int64 [n]
    keypoints: np.ndarray | None  # float32 [n, j, 3]
    numbers: np.ndarray  # int64 [n], index into `store`
    store: segmentations.Store


def key(identity) -> str:
    """Ids compare as text, so that 1, 1.0 and "1" are the same."""
    return str(int(identity) if isinstance(identity, float) and identity.is_integer() else identity)


def numbered(keys: Sequence[str], what: str, report: Report) -> list[int]:
    """Whole numbers for ids: their own where all have one, else 1, 2, ..."""
    try:
        numbers = [int(text) for text in keys]
        if len(set(numbers)) == len(numbers) and all(0 <= n < 2**63 for n in numbers):
            return numbers
    except ValueError:
        pass
    report.warning(f"{what} ids are not distinct whole numbers, renumbered from 1 in results", what, keys)
    return list(range(1, len(keys) + 1))


def objects(
    entries: Iterable,
    rows: Mapping[str, int],
    sizes: np.ndarray,
    classes: Mapping[str, int],
    categories: Sequence[Category],
    report: Report,
) -> Objects:
    """Reads the annotations.

    Args:
        entries: the JSON's "annotations".
        rows: image id as text -> row in `sizes`, or -1 for an image that is left out with all that belongs to it.
        sizes: int [images, 2], height and width.
        classes: category id as text -> class 1..K.
        categories: the K classes.
    """
    table = _Table(rows, sizes, classes, categories, report)
    for number, entry in enumerate(entries):
        table.add(number, entry)
    total = len(table.rows) + len(table.unknown_images) + len(table.unknown_categories)
    _unknown("image_id that no image has, annotation dropped", table.unknown_images, total, report)
    _unknown("category_id that no category has, annotation dropped", table.unknown_categories, total, report)
    if table.left_out:
        report.warning("annotation of an image that is left out, dropped", "annotation", table.left_out)

    image_rows = np.asarray(table.rows, np.int64)
    labels = np.asarray(table.labels, object)
    height, width = sizes[image_rows].astype(np.float64).T.reshape(2, -1)
    boxes, keep = _boxes(np.asarray(table.boxes).reshape(-1, 4), height, width, table.store, labels, report)
    areas = np.asarray(table.areas)
    whole = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    classes_of = np.asarray(table.classes, np.int32)
    crowd = np.asarray(table.crowd, bool)
    ignored = np.asarray(table.ignored, bool)
    suspect = crowd & keep & ~ignored & table.store.is_rle()
    crowd = ignored | crowd & ~_instances(suspect, keep, classes_of, categories, labels, report)
    box_only = keep & ~crowd & table.store.is_box_only()
    if box_only.any():
        text = "object with a box but no mask, left out of the mask loss"
        (report.note if box_only.sum() == keep.sum() else report.warning)(text, "annotation", labels[box_only])

    order = np.flatnonzero(keep)[np.argsort(image_rows[keep], kind="stable")]
    return Objects(
        rows=image_rows[order],
        classes=classes_of[order],
        boxes=boxes[order].astype(np.float32),
        crowd=crowd[order],
        areas=np.where(np.isfinite(areas), areas, whole)[order].astype(np.float32),
        ids=_annotation_ids(table.labels, report)[order],
        keypoints=_keypoint_array(table, labels, report)[order] if table.joints else None,
        numbers=order,
        store=table.store,
    )


class _Table:
    """The annotations as columns, each as the file has it."""

    def __init__(self, rows_of, sizes: np.ndarray, class_of, categories, report: Report):
        self._rows_of, self._sizes, self._class_of, self._report = rows_of, sizes.tolist(), class_of, report
        self._joints_of = [0, *(len(category.keypoints) for category in categories)]
        self.joints = max(self._joints_of)
        self.rows, self.classes, self.crowd, self.ignored = array("q"), array("i"), array("b"), array("b")
        self.boxes, self.areas, self.keypoints = array("d"), array("d"), array("f")
        self.labels: list = []
        self.store = segmentations.Store()
        self.unknown_images: list = []
        self.unknown_categories: list = []
        self.left_out: list = []

    def add(self, number: int, entry) -> None:
        report = self._report
        if not isinstance(entry, dict):
            report.warning("annotation that is not an object in braces, dropped", "annotation", [f"number {number}"])
            return
        label = entry.get("id", f"number {number}")
        row = self._rows_of.get(key(entry.get("image_id")))
        class_ = self._class_of.get(key(entry.get("category_id")))
        if row is None:
            self.unknown_images.append(label)
        elif class_ is None:
            self.unknown_categories.append(label)
        elif row < 0:
            self.left_out.append(label)
        else:
            self._add(entry, label, row, class_)

    def _add(self, entry: dict, label, row: int, class_: int) -> None:
        report = self._report
        height, width = self._sizes[row]
        segmentation = segmentations.canonical(entry.get("segmentation"), height, width, report, label)
        box, area = _box(entry.get("bbox"), report, label), _number(entry.get("area"))
        if not isfinite(sum(box)) and segmentation is not None:
            box = segmentations.bounds(segmentation)
            report.note("box absent or not finite, taken from the mask", "annotation", [label])
        if not 0 < area < inf:
            area = nan if segmentation is None else segmentations.area(segmentation)
            report.note("area absent or not positive, taken from the mask or the box", "annotation", [label])
        attributes = entry.get("attributes")
        if isinstance(attributes, dict) and _number(attributes.get("rotation", 0)) not in (0, 360):
            report.warning("rotated box, read as the upright box that the file gives", "annotation", [label])
        self.rows.append(row)
        self.classes.append(class_)
        self.boxes.extend(box)
        self.areas.append(area)
        self.crowd.append(_flag(entry.get("iscrowd")))
        self.ignored.append(_flag(entry.get("ignore")))
        self.labels.append(label)
        self.store.append(segmentation)
        joints, points = self._joints_of[class_], entry.get("keypoints")
        if self.joints:
            self.keypoints.extend(_keypoints(points, joints, self.joints, report, label))
        if points and not joints:
            report.note("keypoints of a category that names none, not used", "annotation", [label])


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return nan


def _flag(value) -> bool:
    return value not in (None, 0, "", "0", "false", "False")


def _box(value, report: Report, label) -> list[float]:
    if not isinstance(value, list) or len(value) != 4:
        return [nan] * 4
    if any(isinstance(number, str) for number in value):
        report.warning("numbers of a box written as text, read as numbers", "annotation", [label])
    return [_number(number) for number in value]


def _keypoints(value, joints: int, most: int, report: Report, label) -> list[float]:
    """3 * `most` numbers, zeros where nothing is labelled."""
    if not value or not joints:
        return [0.0] * (3 * most)
    numbers = [_number(number) for number in value] if isinstance(value, list) else []
    if len(numbers) != 3 * joints:
        report.warning("keypoints that are not three numbers for each name, not used", "annotation", [label])
        numbers = [0.0] * (3 * joints)
    return numbers + [0.0] * (3 * (most - joints))


def _keypoint_array(table: _Table, labels: np.ndarray, report: Report) -> np.ndarray:
    points = np.array(table.keypoints, np.float32).reshape(-1, table.joints, 3)
    bad = ~np.isfinite(points).all(axis=-1)
    points[bad] = 0
    if bad.any():
        text = "keypoint that is not finite, taken as not labelled"
        report.warning(text, "annotation", labels[bad.any(axis=-1)])
    points[..., 2] = np.clip(np.round(points[..., 2]), 0, 2)
    return points


def _unknown(text: str, labels: list, total: int, report: Report) -> None:
    if len(labels) > MAX_UNKNOWN * total:
        report.error(f"{text}; over {MAX_UNKNOWN:.0%} of all: is it the right file?", "annotation", labels)
    elif labels:
        report.warning(text, "annotation", labels)


def _boxes(
    xywh: np.ndarray,
    height: np.ndarray,
    width: np.ndarray,
    store: segmentations.Store,
    labels: np.ndarray,
    report: Report,
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as xyxy inside their images, and which of them are left."""
    finite = np.all(np.isfinite(xywh), axis=-1)
    xywh = np.where(finite[:, None], xywh, 0.0)
    side = np.stack([width, height, width, height], axis=-1)
    if finite.any() and (np.abs(xywh) <= 1).all() and (side[finite] > 2).any():
        report.warning("boxes between 0 and 1 are shares of the image, scaled to pixels", "annotation", labels)
        xywh = xywh * side
        store.scale(width, height)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=-1)
    # One pixel of slack: exporters round.
    fits = (boxes[:, 2:] <= side[:, 2:] + 1).all(axis=-1)
    fits_as_corners = (xywh[:, 2:] <= side[:, 2:] + 1).all(axis=-1) & (xywh[:, 2:] > xywh[:, :2]).all(axis=-1)
    corners = finite & ~fits & fits_as_corners
    if corners.sum() > finite.sum() / 2:
        text = "boxes fit only as x1, y1, x2, y2: COCO wants x, y, width, height; convert them"
        report.error(text, "annotation", labels[corners])
    clipped = np.clip(boxes, 0, side)
    solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=-1)
    # In float32, as it will be stored: a sliver far from the origin may vanish.
    edges = clipped.astype(np.float32)
    inside = (edges[:, 2:] > edges[:, :2]).all(axis=-1)
    moved = (np.abs(clipped - boxes) > 1).any(axis=-1)
    for text, which in (
        ("box absent or not finite and no mask, dropped", ~finite),
        ("box without area, dropped", finite & ~solid),
        ("box outside the image, dropped", finite & solid & ~inside),
        ("box reaches more than a pixel outside the image, clipped", finite & solid & inside & moved),
    ):
        if which.any():
            report.warning(text, "annotation", labels[which])
    return clipped, finite & solid & inside


def _instances(
    suspect: np.ndarray,
    keep: np.ndarray,
    classes: np.ndarray,
    categories: Sequence[Category],
    labels: np.ndarray,
    report: Report,
) -> np.ndarray:
    """Which crowds are single objects, marked only because an exporter marks every mask painted with a brush.

    Args:
        suspect: crowds with an RLE mask and without COCO's "ignore".
        keep: the objects that are left.
    """
    hint = 'to keep a true crowd, give it "ignore": 1'
    if suspect.all(where=keep) or suspect.sum() > max(FEW, MAX_CROWD * keep.sum()):
        wrong, text = suspect, f"over {MAX_CROWD:.0%} crowds"
    else:
        often = [c for c in np.unique(classes[suspect]) if suspect.sum(where=classes == c) > FEW]
        often = [c for c in often if suspect.all(where=keep & (classes == c))]
        wrong = suspect & np.isin(classes, often)
        text = f"nothing but crowds of {', '.join(categories[c - 1].name for c in often)}"
    if wrong.any():
        text += f", as CVAT marks brushed masks: READ AS SINGLE OBJECTS; {hint}"
        report.warning(text, "annotation", labels[wrong])
    return wrong


def _annotation_ids(labels: list, report: Report) -> np.ndarray:
    """The file's own ids where they are distinct and positive, else 1, 2, ..."""
    if all(type(label) is int and 0 < label < 2**63 for label in labels) and len(set(labels)) == len(labels):
        return np.asarray(labels, np.int64)
    seen: set[str] = set()
    repeated = [label for label in map(key, labels) if label in seen or seen.add(label)]
    if repeated:
        report.warning("annotation id used twice, all renumbered from 1", "annotation", repeated)
    else:
        report.note("annotation ids are not whole numbers from 1 up, renumbered", "annotation", labels)
    return np.arange(1, len(labels) + 1)
