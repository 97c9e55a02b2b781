"""Cityscapes' instances (Cordts et al., 2016): eight classes, read from its 16-bit images of instance ids.

A pixel holds 1000 * class + n for the n-th object of a class that has instances, and the class alone for everything
else: what has no instances, and groups in which nobody could tell one object from the next.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Integer
from PIL import Image
from pycocotools import mask as rle

from mrcnn_jax.data import coco_categories, images
from mrcnn_jax.data.dataset import Category, Dataset, Record
from mrcnn_jax.data.report import Report
from mrcnn_jax.errors import UserError
from mrcnn_jax.progress import Progress

# Cityscapes' own ids of the classes whose instances are scored.
_NAMES = {
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
# What its evaluation ignores: void, and classes too rare. Single caravans (29) and trailers (30), which have ids of
# instances, are not ignored there, and are background.
_IGNORED = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
_LAST_CLASS = max(_NAMES)
# Pixels below which Cityscapes does not score an object.
_SCORED_FROM = 100


def load(root: str | Path, split: str, categories: Sequence[Category] | None = None) -> tuple[Dataset, Report]:
    """Reads `leftImg8bit/{split}/CITY/*_leftImg8bit.png` with `gtFine/{split}/CITY/*_gtFine_instanceIds.png`.

    Masks are compressed RLE of the pixels that can be seen, boxes their bounds; a group is a crowd. All objects are
    kept, however small; Detectron2 leaves out those of one row or column. What Cityscapes' evaluation ignores becomes
    the records' `ignored_region`; training never reads it, so that those of 'train' go without. Images are numbered
    from 1 in the order of their names.

    Takes about 50 ms an image, 2.5 minutes for 'train': `to_coco` makes a file that is read in seconds.

    Args:
        root: folder into which leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip were unpacked.
        split: 'train' or 'val'.
        categories: the training set's categories, found by name; None: the eight in Cityscapes' order. Ids are always
            Cityscapes' own, 24 to 33.

    Raises:
        UserError: an image or its annotation is missing, damaged or not Cityscapes'; an annotated class is not among
            `categories`.
    """
    root, report, records = Path(root), Report(), []
    files = _files(root, split)
    with Progress(f"read Cityscapes {split}", len(files)) as progress:
        for image_id, (image, annotation) in enumerate(files, start=1):
            records.append(_record(image_id, image, annotation, with_ignored=split != "train"))
            progress.update(image_id)

    annotated = {str(number) for record in records for number in np.unique(record.classes)}
    entries = [{"id": number, "name": name} for number, name in _NAMES.items()]
    classes, class_of = coco_categories.classes(entries, annotated, categories, report)
    if report.errors:
        raise UserError(f"{root}: {report.errors[0]}")
    lookup = np.zeros(_LAST_CLASS + 1, np.int32)
    for number, class_ in class_of.items():
        lookup[int(number)] = class_
    starts = np.cumsum([1, *(len(record.boxes) for record in records)])
    _tell(records, report)
    records = [
        replace(record, classes=lookup[record.classes], annotation_ids=np.arange(first, first + len(record.boxes)))
        for record, first in zip(records, starts.tolist(), strict=False)
    ]
    return Dataset(classes, records, f"cityscapes {split}"), report


def to_coco(dataset: Dataset) -> dict:
    """What `load` gave, as a COCO JSON for `coco.load` with Cityscapes' root as the folder of images.

    It differs from `Dataset.to_coco` in that groups are marked "ignore" besides "iscrowd": they are so many that they
    would pass for objects whose masks were painted with a brush, which CVAT marks as crowds.
    """
    content = dataset.to_coco()
    for annotation in content["annotations"]:
        annotation["ignore"] = annotation["iscrowd"]
    return content


def _files(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Each image with its annotation, in the order of cities and names."""
    pictures = _named(root / "leftImg8bit" / split, "_leftImg8bit.png")
    annotations = _named(root / "gtFine" / split, "_gtFine_instanceIds.png")
    for found, package, suffix in (
        (pictures, "leftImg8bit", "leftImg8bit.png"),
        (annotations, "gtFine", "gtFine_instanceIds.png"),
    ):
        missing = sorted({**pictures, **annotations}.keys() - found.keys())
        if not missing and found:
            continue
        name = "/".join(missing[0]) if missing else "CITY/*"
        more = f", nor {len(missing) - 1:,} others" if len(missing) > 1 else ""
        remedy = f"unpack {package}_trainvaltest.zip there"
        if suffix.endswith("Ids.png"):
            remedy += ", or make it of the polygons with cityscapesscripts' json2instanceImg"
        raise UserError(f"{root}: there is no {package}/{split}/{name}_{suffix}{more}: {remedy}")
    return [(pictures[key], annotations[key]) for key in sorted(pictures)]


def _named(folder: Path, suffix: str) -> dict[tuple[str, str], Path]:
    """The files of all cities by city and name."""
    return {(path.parent.name, path.name.removesuffix(suffix)): path for path in folder.glob(f"*/*{suffix}")}


def _instance_ids(path: Path) -> Integer[np.ndarray, "h w"]:
    # Looks at the header, so that no memory is taken for an image that is too large.
    images.size_of(path)
    try:
        with Image.open(path) as image:
            ids = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: the image is damaged or cut short ({error}); fetch it again") from error
    if ids.ndim != 2 or ids.dtype.kind not in "ui":
        raise UserError(f"{path}: not an image of instance ids, which has one channel of 16 bits; fetch it again")
    return ids


def _record(image_id: int, image: Path, annotation: Path, *, with_ignored: bool) -> Record:
    """One image with its objects; as classes, Cityscapes' ids."""
    ids = _instance_ids(annotation)
    # Column by column, as RLE goes: the run of equal ids `k` covers starts[k] to ends[k].
    flat = cv2.transpose(ids).ravel()
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    strange = values[(values > _LAST_CLASS) & ((values < 24_000) | (values >= 34_000))]
    if len(strange):
        raise UserError(
            f"{annotation}: {strange[0]} is no instance id of Cityscapes, perhaps one for training; fetch it again"
        )

    regions = [n for n in np.unique(values).tolist() if (n // 1000 or n) in _NAMES]
    masks = tuple(_rle(starts[values == n], ends[values == n], ids.shape) for n in regions)
    boxes = rle.toBbox(list(masks)).reshape(-1, 4).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    ignored = np.isin(values, _IGNORED) if with_ignored else np.zeros(len(values), bool)
    return Record(
        image_id=image_id,
        source=image,
        height=ids.shape[0],
        width=ids.shape[1],
        boxes=boxes,
        classes=np.array([n // 1000 or n for n in regions], np.int32),
        crowd=np.array([n < 1000 for n in regions], bool),
        areas=np.asarray(rle.area(list(masks)), np.float32).reshape(-1),
        segmentations=masks,
        # leftImg8bit/SPLIT/CITY/NAME
        file_name="/".join(image.parts[-4:]),
        ignored_region=_rle(starts[ignored], ends[ignored], ids.shape) if ignored.any() else None,
    )


def _rle(starts: np.ndarray, ends: np.ndarray, shape: tuple[int, ...]) -> dict:
    """Compressed RLE of stretches of pixels, counted column by column."""
    apart = starts[1:] != ends[:-1]
    starts, ends = starts[np.append(True, apart)], ends[np.append(apart, True)]
    height, width = shape
    counts = np.diff(np.stack([starts, ends], axis=1).ravel(), prepend=0, append=height * width)
    # A run of no pixels at the end is not written.
    counts = counts[: len(counts) - (counts[-1] == 0)]
    return dict(rle.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width))


def _tell(records: list[Record], report: Report) -> None:
    # Annotations are numbered from 1 over all images.
    crowd = np.concatenate([record.crowd for record in records])
    small = ~crowd & (np.concatenate([record.areas for record in records]) < _SCORED_FROM)
    for text, which in (
        (f"object of fewer than {_SCORED_FROM} pixels, which Cityscapes does not score", small),
        ("group of objects, taken as a crowd", crowd),
    ):
        if which.any():
            report.note(text, "annotation", np.flatnonzero(which) + 1)
    empty = [record.image_id for record in records if not len(record.boxes)]
    if len(empty) == len(records):
        report.warning("no image has an object of the eight classes: there is nothing to learn")
    elif empty:
        report.note("image without annotations, kept as a negative", "image", empty)
