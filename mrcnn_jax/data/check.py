"""Reads a whole data set before a run does, and tells what is wrong with it and what is in it."""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from mrcnn_jax.data import coco, images
from mrcnn_jax.data.dataset import Category, Dataset, Record
from mrcnn_jax.data.overlaps import pairwise_iou
from mrcnn_jax.data.proposals import attach_file, read_proposals
from mrcnn_jax.data.report import Report
from mrcnn_jax.errors import UserError

# Overlap with a proposal at which an object counts as covered.
_COVERS = 0.5


@dataclass(frozen=True)
class ClassRow:
    """What a data set has of one class."""

    id: int
    name: str
    # Images with an object of the class, and its objects: all, crowds, with a mask.
    images: int
    objects: int
    crowd: int
    masks: int
    # Side in pixels of the square as large as the box; 0 without objects.
    smallest: float
    median: float
    largest: float


@dataclass(frozen=True)
class CheckResult:
    """Findings and contents of a data set."""

    report: Report
    num_images: int = 0
    num_objects: int = 0
    classes: list[ClassRow] = field(default_factory=list)
    # Image id and name by the hash of the file; empty where the images were not decoded.
    pictures: dict[str, str] = field(default_factory=dict)
    # None where the annotations cannot be read.
    dataset: Dataset | None = None

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes, none where the annotations cannot be read."""
        return () if self.dataset is None else self.dataset.categories

    @property
    def errors(self) -> list[str]:
        """What stops a run: one line for each kind."""
        return self.report.errors

    @property
    def warnings(self) -> list[str]:
        """What was repaired or dropped: one line for each kind."""
        return self.report.warnings

    def shared_pictures(self, other: "CheckResult") -> list[str]:
        """The images of this set that are, to the byte, also in the other, as in training and validation."""
        return [name for digest, name in self.pictures.items() if digest in other.pictures]

    def lines(self) -> list[str]:
        """Contents, class table and findings as text."""
        verdict = f"{len(self.errors)} kinds of error, {len(self.warnings)} of warning"
        head = f"{self.num_images:,} images, {self.num_objects:,} objects, {len(self.classes)} classes"
        return [head, *_table(self.classes), *self.report.lines(), verdict]

    def to_json(self) -> dict:
        """Everything, as JSON can hold it."""
        return {
            "images": self.num_images,
            "objects": self.num_objects,
            "classes": [asdict(row) for row in self.classes],
            "findings": self.report.to_dict(),
        }


def check(
    images_dir: str | Path,
    annotations_json: str | Path,
    decode: bool = True,
    workers: int | None = None,
    categories: Sequence[Category] | None = None,
) -> CheckResult:
    """`check_dataset` of what `coco.read` reads; `categories` are the training set's, for a validation set."""
    return check_dataset(lambda: coco.read(images_dir, annotations_json, categories), decode, workers)


def check_dataset(
    read: Callable[[], tuple[Dataset, Report]], decode: bool = True, workers: int | None = None
) -> CheckResult:
    """Reads the annotations and the images of a data set.

    Finds what `read` finds, and in the images: files that cannot be read or are cut short, sizes that are not the
    annotated ones, EXIF rotation, and one picture under two names. A damaged annotation file is a finding too.

    Args:
        read: of a data set of files, such as `coco.read` or `voc.read` with its arguments.
        decode: decode every image; else only the headers are read, which misses files cut short and repeated pictures.
        workers: threads; by default one a CPU. (Decoding does not hold Python's lock.)
    """
    try:
        dataset, report = read()
    except UserError as error:
        report = Report()
        report.error(str(error))
        return CheckResult(report)
    pictures = _check_images(dataset.records, report, decode, workers or os.cpu_count() or 1)
    rows = _class_rows(dataset)
    if unused := [f"{row.id} {row.name}" for row in rows if row.objects == 0]:
        report.note("class without objects", "category", unused)
    num_objects = sum(row.objects for row in rows)
    return CheckResult(report, len(dataset.records), num_objects, rows, pictures, dataset)


def check_proposals(result: CheckResult, path: Path) -> None:
    """Adds to the findings what a file of proposals lacks for these images, and how many of their objects it covers."""
    if result.dataset is None:
        return
    try:
        found = read_proposals(path)
        _, lines = attach_file(result.dataset, found)
    except UserError as error:
        result.report.error(str(error))
        return
    for line in lines:
        result.report.note(line)
    covered, num_objects = 0, 0
    for record in result.dataset.records:
        boxes, objects = found.of(record).boxes, record.boxes[~record.crowd]
        num_objects += len(objects)
        covered += int((pairwise_iou(boxes, objects).max(axis=0, initial=0) >= _COVERS).sum())
    share = covered / max(num_objects, 1)
    result.report.note(f"proposals of {path} cover {share:.1%} of {num_objects:,} objects (IoU of {_COVERS} or more)")


def _check_images(records: Sequence[Record], report: Report, decode: bool, workers: int) -> dict[str, str]:
    pictures: dict[str, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        looked = pool.map(lambda i: _look(records[i], decode), range(len(records)))
        progress = track(
            looked,
            "checking images",
            total=len(records),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        for record, (digest, finding, level) in zip(records, progress, strict=True):
            name = f"{record.image_id} {record.file_name}"
            if finding:
                getattr(report, level)(finding, "image", [name])
            if digest in pictures:
                report.warning("one picture under two names", "image", [f"{pictures[digest]} and {name}"])
            elif digest:
                pictures[digest] = name
    return pictures


def _look(record: Record, decode: bool) -> tuple[str, str, str]:
    """Hash of the file, and what is to say about it: finding and level, empty if nothing."""
    digest = ""
    try:
        source = record.source
        if decode and isinstance(source, Path):
            source = source.read_bytes()
            digest = hashlib.blake2b(source, digest_size=16).hexdigest()
        upright = images.decode(source).shape[:2] if decode else images.size_of(source)
        stored = images.size_of(source, orientation=False)
        turned = images.orientation_of(source) != 1
    except (UserError, OSError):
        return "", "image that cannot be read, is cut short or too large; fetch it again or remove it", "error"
    annotated = (record.height, record.width)
    if annotated not in (upright, stored):
        return digest, "image whose size is not the annotated one; use the images that were annotated", "error"
    if not turned:
        return digest, "", ""
    if upright == stored:  # Mirrored, upside down, or square: the annotated size does not tell.
        return digest, "image that its EXIF tag turns but not its size; used as turned, look at its masks", "warning"
    if annotated == upright:
        return digest, "image with an EXIF rotation, turned upright as it was annotated", "note"
    return digest, "image with an EXIF rotation, annotated and used as it is stored; look at its masks", "warning"


def _class_rows(dataset: Dataset) -> list[ClassRow]:
    numbers, crowd, masks, sides, images_of = [], [], [], [], np.zeros(dataset.num_classes + 1, int)
    for record in dataset.records:
        numbers.append(record.classes)
        crowd.append(record.crowd)
        masks.append(np.array([segmentation is not None for segmentation in record.segmentations], bool))
        sides.append(np.sqrt((record.boxes[:, 2] - record.boxes[:, 0]) * (record.boxes[:, 3] - record.boxes[:, 1])))
        images_of[np.unique(record.classes)] += 1
    columns = [np.concatenate(column) for column in (numbers, crowd, masks, sides)]
    return [_class_row(category, i, images_of, *columns) for i, category in enumerate(dataset.categories, start=1)]


def _class_row(category: Category, number: int, images_of, numbers, crowd, masks, sides) -> ClassRow:
    own = numbers == number
    side = np.sort(sides[own]) if own.any() else np.zeros(1)
    return ClassRow(
        id=category.id,
        name=category.name,
        images=int(images_of[number]),
        objects=int(own.sum()),
        crowd=int(crowd[own].sum()),
        masks=int(masks[own].sum()),
        smallest=round(float(side[0]), 1),
        median=round(float(np.median(side)), 1),
        largest=round(float(side[-1]), 1),
    )


def _table(rows: list[ClassRow]) -> list[str]:
    """Aligned columns; the box columns are sides of squares of the same area, in pixels."""
    if not rows:
        return []
    head = ("id", "class", "images", "objects", "crowd", "masks", "smallest", "median", "largest box (side, px)")
    cells = [head, *((str(value) for value in asdict(row).values()) for row in rows)]
    cells = [list(row) for row in cells]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head) - 1)]
    return [
        "  ".join(c.ljust(w) if i == 1 else c.rjust(w) for i, (c, w) in enumerate(zip(row, [*widths, 7], strict=True)))
        for row in cells
    ]
