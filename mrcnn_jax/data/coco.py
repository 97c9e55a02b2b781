"""COCO instances JSON, from any tool and in any state, to a `Dataset`."""

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrcnn_jax.data import coco_categories, images, normalise, segmentations
from mrcnn_jax.data.coco_files import ImageFiles, find
from mrcnn_jax.data.dataset import Category, Dataset, Record
from mrcnn_jax.data.report import Report
from mrcnn_jax.errors import UserError

__all__ = ["FILE_LIMIT", "categories", "find", "load", "read"]

# Bytes of JSON. COCO has 0.5 GB, LVIS 1.1 GB; Python needs some eight times as much while it reads.
FILE_LIMIT = 4 << 30


def load(
    images_dir: str | Path, annotations_json: str | Path, categories: Sequence[Category] | None = None
) -> tuple[Dataset, Report]:
    """Reads the annotations of a folder of images; the images themselves are read on access.

    Mended and reported: ids of any kind and numbering; a class named twice; names of images written in another way
    than the files; numbers as text; boxes absent, as shares of the image, or reaching outside; areas absent; polygons
    flat, too deep or of two corners; RLE in any coding; crowd flags on all brushed masks; sizes absent (read from the
    images). Dropped and reported: boxes without area or outside the image; parts of polygons without area or of fewer
    than three points; a few annotations of an unknown image or category. An object without a mask is kept for its box.
    Images without annotations are kept, and so is an image's `ignored_region`, which COCO itself does not have. An
    error: images that are not on disk, since figures without them would not be those of the data set; and what leaves
    it open what is meant.

    Args:
        images_dir: folder of the images.
        annotations_json: instances or keypoints annotations.
        categories: the training set's categories: a validation file is mapped onto them by name.

    Raises:
        UserError: the file is not such a JSON, or `read` reports errors; the message gives the first.
    """
    dataset, report = read(images_dir, annotations_json, categories)
    report.stop_if_errors(annotations_json)
    return dataset, report


def read(
    images_dir: str | Path, annotations_json: str | Path, categories: Sequence[Category] | None = None
) -> tuple[Dataset, Report]:
    """As `load`, but what would stop a run stands in `Report.errors`, together with everything else that is wrong.

    Raises:
        UserError: the file is no COCO JSON at all, or none of its images is found.
    """
    images_dir, annotations_json = Path(images_dir), Path(annotations_json)
    report = Report()
    # A big file makes tens of millions of objects, none of them in cycles: collecting meanwhile only costs time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        content = _content(annotations_json)
        annotated = {normalise.key(e.get("category_id")) for e in content["annotations"] if isinstance(e, dict)}
        classes, class_of = coco_categories.classes(content["categories"], annotated, categories, report)
        pictures, rows = _pictures(content["images"], images_dir, annotations_json, report)
        found = normalise.objects(content["annotations"], rows, pictures.sizes, class_of, classes, report)
    finally:
        if collecting:
            gc.enable()
    records = _Records(images_dir, pictures, found)
    empty = np.flatnonzero(np.diff(records.starts) == 0)
    if len(found.rows) == 0:
        report.warning("no annotation is left: there is nothing to learn")
    elif len(empty):
        report.note("image without annotations, kept as a negative", "image", [pictures.ids[i] for i in empty])
    return Dataset(classes, records, annotations_json.stem), report


def categories(annotations_json: Path) -> tuple[Category, ...]:
    """The categories of a COCO JSON in the order of their ids, with or without annotations: as Detectron2 counts them.

    Raises:
        UserError: the file is no COCO JSON, or its categories are not clear.
    """
    report, entries = Report(), _content(annotations_json)["categories"]
    every = {normalise.key(entry.get("id")) for entry in entries}
    found, _ = coco_categories.classes(entries, every, None, report)
    if report.errors:
        raise UserError(f"{annotations_json}: {report.errors[0]}")
    return found


@dataclass
class _Pictures:
    ids: list[int]
    file_names: list[str]
    # Relative to the images folder.
    paths: list[str]
    # int32 [images, 2], height and width.
    sizes: np.ndarray
    # Those that have one, by row.
    ignored_regions: dict[int, list | dict]


class _Records(Sequence):
    """Builds each record on access from arrays, which take a tenth of the memory of records."""

    def __init__(self, folder: Path, pictures: _Pictures, found: normalise.Objects):
        self._folder, self._pictures, self._objects = folder, pictures, found
        self.starts = np.searchsorted(found.rows, np.arange(len(pictures.ids) + 1))

    def __len__(self) -> int:
        return len(self._pictures.ids)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        pictures, found = self._pictures, self._objects
        own = slice(self.starts[index], self.starts[index + 1])
        return Record(
            image_id=pictures.ids[index],
            source=self._folder / pictures.paths[index],
            height=int(pictures.sizes[index, 0]),
            width=int(pictures.sizes[index, 1]),
            boxes=found.boxes[own],
            classes=found.classes[own],
            crowd=found.crowd[own],
            areas=found.areas[own],
            segmentations=tuple(found.store[number] for number in found.numbers[own].tolist()),
            keypoints=None if found.keypoints is None else found.keypoints[own],
            annotation_ids=found.ids[own],
            file_name=pictures.file_names[index],
            ignored_region=pictures.ignored_regions.get(index),
        )


def _content(path: Path) -> dict:
    """The parsed file, with lists of images, annotations and categories in it."""
    try:
        size = path.stat().st_size
        if size > FILE_LIMIT:
            raise UserError(
                f"{path}: {size / 2**30:.1f} GiB of JSON is over the limit of {FILE_LIMIT >> 30} GiB; split it"
            )
        with open(path, "rb") as file:
            content = json.load(file)
    except OSError as error:
        raise UserError(f"{path}: cannot read the annotations ({error.strerror or error}); check the path") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply for annotations; export it again as COCO instances JSON") from error
    except MemoryError as error:
        raise UserError(f"{path}: too large for the memory of this machine; split it") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); export it again as COCO instances JSON") from error
    if isinstance(content, list):
        raise UserError(
            f"{path}: a list, as results are; COCO annotations are an object with images, annotations, categories"
        )
    if not isinstance(content, dict):
        raise UserError(f"{path}: not COCO annotations; export an instances JSON with images, annotations, categories")
    for name in ("images", "annotations", "categories"):
        if name not in content:
            there = ", ".join(sorted(map(str, content))[:6]) or "nothing"
            raise UserError(f"{path}: no {name!r} (there is {there}); export it again as COCO instances JSON")
        if not isinstance(content[name], list):
            raise UserError(f"{path}: {name!r} is not a list; export it again as COCO instances JSON")
    for name in ("images", "categories"):
        if not content[name]:
            raise UserError(f"{path}: {name!r} is empty; export it again with its {name}")
    first = next((entry for entry in content["annotations"] if isinstance(entry, dict)), {})
    if "segments_info" in first:
        raise UserError(f"{path}: a panoptic file; take the instances file of the same data")
    return content


def _pictures(entries: list, folder: Path, path: Path, report: Report) -> tuple[_Pictures, dict[str, int]]:
    """The images that are on disk, and the row of each id: -1 where the image is left out."""
    files = ImageFiles(folder)
    located = _located(_distinct(entries, report), files, report)
    rows = {identity: -1 for identity in located}
    keys, file_names, paths, sizes, ignored_regions = [], [], [], [], {}
    for identity, (entry, name, found) in located.items():
        if found is None:
            text = "image that is not on disk, fetch it or take it out of the annotations"
            report.error(text, "image", [f"{identity} {name}"])
            continue
        size = _size(entry, folder / found, f"{identity} {name}", report)
        if size is None:
            continue
        rows[identity] = len(keys)
        ignored = segmentations.canonical(entry.get("ignored_region"), *size, report, f"ignored_region of {name}")
        if ignored is not None:
            ignored_regions[len(keys)] = ignored
        keys.append(identity)
        file_names.append(name)
        paths.append(found)
        sizes.append(size)
    if not any(found for _, _, found in located.values()):
        names = [name for _, name, _ in located.values()]
        tried = ", ".join(str(folder / name) for name in names[:3])
        raise UserError(f"{path}: none of its {len(names):,} images is found (tried {tried}); give their folder")
    numbers = normalise.numbered(keys, "image", report)
    sizes = np.asarray(sizes, np.int32).reshape(-1, 2)
    return _Pictures(numbers, file_names, paths, sizes, ignored_regions), rows


def _distinct(entries: list, report: Report) -> dict[str, dict]:
    """Entries by id as text."""
    distinct: dict[str, dict] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "id" not in entry:
            report.error("image without an id", "image", [f"number {number}"])
            continue
        first = distinct.setdefault(normalise.key(entry["id"]), entry)
        if first is not entry and _name(first) == _name(entry):
            report.warning("image listed twice, the second is left out", "image", [entry["id"]])
        elif first is not entry:
            report.error("image id used for two files, number them anew", "image", [entry["id"]])
    return distinct


def _name(entry: dict) -> str:
    # LVIS has only the address.
    return str(entry.get("file_name") or entry.get("coco_url") or entry.get("path") or "")


def _located(entries: dict[str, dict], files: ImageFiles, report: Report) -> dict[str, tuple[dict, str, str | None]]:
    """Entry, name and file of each image.

    Names as they stand come first, so that one that is only similar takes no other image's file.
    """
    located = {identity: (entry, name := _name(entry), files.exact(name)) for identity, entry in entries.items()}
    taken: dict[str, str] = {}
    for identity, (_, name, found) in located.items():
        if found in taken:
            report.warning("two images with one file", "image", [f"{taken[found]} and {identity} {name}"])
        elif found:
            taken[found] = identity
    for identity, (entry, name, found) in located.items():
        if found:
            continue
        candidates = [candidate for candidate in files.similar(name) if candidate not in taken]
        if len(candidates) > 1:
            fits = " and ".join(candidates[:2])
            report.error("file name that fits several files, give its folder", "image", [f"{identity} {name}: {fits}"])
        if candidates:
            taken[candidates[0]] = identity
            located[identity] = entry, name, candidates[0]
            report.note("file in another folder or spelling than file_name, found", "image", [f"{identity} {name}"])
    return located


def _size(entry: dict, path: Path, called: str, report: Report) -> tuple[int, int] | None:
    """Height and width as annotated, or else of the image, which the report knows as `called`."""
    try:
        size = int(float(entry["height"])), int(float(entry["width"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        size = 0, 0
    if min(size) < 1:
        try:
            size = images.size_of(path)
        except UserError:
            text = "image without width and height that cannot be read, fetch it again or remove it"
            report.error(text, "image", [called])
            return None
        report.note("width or height absent, read from the image", "image", [called])
    if size[0] * size[1] > images.PIXEL_LIMIT:
        report.error(f"image of more than {images.PIXEL_LIMIT:,} pixels, cut it into tiles", "image", [called])
        return None
    return size
