"""Pascal VOC's folders, its own or those that labelling tools export, to a `Dataset`.

A folder (VOC2007, VOC2012, ...) holds `ImageSets/Main/SET.txt` with the names of a set's images, for each of them
`Annotations/NAME.xml`, and its picture in `JPEGImages`. See Everingham et al., "The Pascal Visual Object Classes (VOC)
Challenge", IJCV 2010, and the development kits' own documentation.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32
from rich.console import Console
from rich.progress import track

from mrcnn_jax.data import images, voc_xml
from mrcnn_jax.data.dataset import Category, Dataset, Record
from mrcnn_jax.data.published_classes import numbered, published_classes
from mrcnn_jax.data.report import Report
from mrcnn_jax.errors import UserError

_IMAGE_SETS = Path("ImageSets") / "Main"
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Bytes of an image set; VOC's have 200 kB.
_SET_LIMIT = 64 << 20
_SETS = {"train": ("train", "trainval"), "val": ("val", "test")}


def load(root: str | Path, sets: str, categories: Sequence[Category] | None = None) -> tuple[Dataset, Report]:
    """Reads the annotations of image sets; of the images only the headers, for their sizes.

    VOC counts pixels from one and includes the last: xmin..xmax becomes [xmin - 1, xmax] in continuous pixels, clipped
    to the image.

    Image ids are the digits of the names where these are distinct numbers below 2**31 ("000005" is 5, "2008_000002" is
    2008000002, "BloodImage_00007" is 7), else the place in the sorted list of all names, from 1. Classes are VOC's
    twenty in alphabetical order if no others occur, else the names that occur, sorted; numbered from 1.

    Left out and reported: objects without a name, and boxes without area, outside the image or without numbers. Kept
    and reported: images without objects, and difficult objects (see `Dataset.without_difficult`). An error: images or
    annotations that are missing or damaged, sizes that do not agree, and classes that `categories` lack.

    Args:
        root: a VOCdevkit, or one of its folders.
        sets: "VOC2007/trainval,VOC2012/trainval", folders below `root` and names of their sets; "trainval" is one of
            `root` itself.
        categories: the training set's: then these are the classes.

    Raises:
        UserError: there is no such set, or `read` reports errors; the message gives the first.
    """
    dataset, report = read(root, sets, categories)
    report.stop_if_errors(root)
    return dataset, report


def read(root: str | Path, sets: str, categories: Sequence[Category] | None = None) -> tuple[Dataset, Report]:
    """As `load`, but what would stop a run stands in `Report.errors`, and the images that it befalls are left out.

    Raises:
        UserError: there is no such set, or none of its images can be used.
    """
    root, report = Path(root), Report()
    listed = _listed(root, sets, report)
    pictures = {folder: _pictures(folder) for folder in {folder for folder, _ in listed}}
    numbers = _numbers([stem for _, stem in listed])
    console = Console(stderr=True)
    progress = track(listed, "reading annotations", console=console, disable=not sys.stderr.isatty())
    found = [
        _image(folder, stem, number, pictures[folder], report)
        for (folder, stem), number in zip(progress, numbers, strict=True)
    ]
    found = [image for image in found if image is not None]
    if not found:
        report.stop_if_errors(root)
    classes = _classes(found, categories, report)
    class_of = {category.name: number for number, category in enumerate(classes, start=1)}
    records = [_record(image, class_of) for image in found]
    if not any(len(record.boxes) for record in records):
        report.warning("no annotation is left: there is nothing to learn")
    elif empty := [record.file_name for record in records if not len(record.boxes)]:
        report.note("image without annotations, kept as a negative", "image", empty)
    return Dataset(classes, records, sets), report


def find(root: Path, split: str) -> str:
    """The sets that are "train" or "val" where the config names none: `train` or else `trainval`, `val` or else `test`.

    Where `trainval` has to serve for training, `val`, which is a part of it, is not taken for validation.

    Raises:
        UserError: there is no such set, or several folders could have it.
    """
    children = sorted(child for child in root.iterdir() if child.is_dir())
    folders = [folder for folder in (root, *children) if (folder / _IMAGE_SETS).is_dir()]
    if not folders:
        raise UserError(
            f"{root}: neither it nor a folder in it has {_IMAGE_SETS}/: give a VOCdevkit or a folder of one"
        )
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        example = f"{folders[-1].name}/{_SETS[split][0]}"
        raise UserError(f"{root} has the folders {names}: name sets with --config.data.{split}_annotations={example}")
    there = _sets_of(folders[0])
    candidates = [name for name in _SETS[split] if name in there]
    if split == "val" and "train" not in there and "trainval" in there:
        candidates = [name for name in candidates if name != "val"]
    if not candidates:
        raise UserError(
            f"{folders[0] / _IMAGE_SETS}: no set for {split} (it has {', '.join(there) or 'none'}): name one with "
            f"--config.data.{split}_annotations"
        )
    return candidates[0] if folders[0] == root else f"{folders[0].name}/{candidates[0]}"


@dataclass(frozen=True)
class _Image:
    """An image with the objects that can be used, before their classes are known."""

    number: int
    path: Path
    size: tuple[int, int]
    names: list[str]
    boxes: Float32[np.ndarray, "n 4"]
    difficult: Bool[np.ndarray, " n"]


def _sets_of(folder: Path) -> list[str]:
    """The image sets of a folder, without those of one class, which have its name before a `_`."""
    return sorted(path.stem for path in (folder / _IMAGE_SETS).glob("*.txt") if "_" not in path.stem)


def _listed(root: Path, sets: str, report: Report) -> list[tuple[Path, str]]:
    """Folder and name of each image, in the order of the sets."""
    listed: dict[tuple[Path, str], None] = {}
    for entry in filter(None, map(str.strip, sets.split(","))):
        parent, _, name = entry.rpartition("/")
        for line in _lines(root / parent, name):
            key = root / parent, line
            if re.fullmatch(r"\S+\s+(-1|0|1)", line) and not (root / parent / "Annotations" / f"{line}.xml").is_file():
                report.error("image set of one class, which is no list of images, name the whole set", "set", [entry])
            elif re.search(r"[/\\\0]", line):
                report.error("path in an image set, where names of images belong, correct it", "image", [line])
            elif key in listed:
                report.warning("image listed twice, used once", "image", [line])
            else:
                listed[key] = None
    if not listed:
        report.stop_if_errors(root)
        raise UserError(f"{root}: the image sets '{sets}' list no image: name others")
    return list(listed)


def _lines(folder: Path, name: str) -> list[str]:
    path = folder / _IMAGE_SETS / f"{name}.txt"
    try:
        if path.stat().st_size > _SET_LIMIT:
            raise UserError(f"{path}: over {_SET_LIMIT >> 20} MiB is no image set; name another")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        there = f"there are {', '.join(_sets_of(folder)[:5])}" if _sets_of(folder) else "there are none"
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"{path}: cannot read this image set ({why}); {there}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """The image files of a folder by their name without extension; VOC's own extension comes first."""
    found = defaultdict(list)
    directory = folder / "JPEGImages"
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.suffix.lower() in _EXTENSIONS:
            found[path.stem].append(path)
    return {stem: sorted(paths, key=lambda path: (path.suffix != ".jpg", path.name)) for stem, paths in found.items()}


def _numbers(stems: list[str]) -> list[int]:
    """Image ids; see `load`."""
    digits = [re.sub(r"[^0-9]", "", stem) for stem in stems]
    numbers = [int(text) for text in digits if text and len(text.lstrip("0")) <= 10]
    if len(set(numbers)) == len(stems) and max(numbers) < 2**31:
        return numbers
    order = sorted(range(len(stems)), key=stems.__getitem__)
    places = np.empty(len(stems), int)
    places[order] = np.arange(1, len(stems) + 1)
    return places.tolist()


def _image(folder: Path, stem: str, number: int, pictures: dict[str, list[Path]], report: Report) -> _Image | None:
    """One image, or None after an error."""
    file, paths = f"{stem}.xml", pictures.get(stem, [])
    try:
        annotation = voc_xml.read(folder / "Annotations" / file)
    except voc_xml.BadXml as error:
        report.error(str(error), "file", [file])
        return None
    if not paths:
        report.error("image that is not on disk, fetch it or take it out of the image set", "image", [stem])
        return None
    if len(paths) > 1 and paths[0].suffix != ".jpg":
        text = "several images for one annotation, leave one of them"
        report.error(text, "image", [" and ".join(path.name for path in paths[:2])])
        return None
    size = _size(annotation, paths[0], report)
    if size is None:
        return None
    boxes, keep = _boxes(annotation, size, file, report)
    difficult = annotation.difficult[keep]
    if difficult.any():
        text = "difficult object, not trained on unless config.data.use_difficult=True"
        report.note(text, "file", [file] * int(difficult.sum()))
    return _Image(number, paths[0], size, [annotation.names[i] for i in keep], boxes[keep], difficult)


def _size(annotation: voc_xml.Annotation, path: Path, report: Report) -> tuple[int, int] | None:
    """Height and width as annotated, which are those of the image as it is shown or as it is stored."""
    try:
        upright = images.size_of(path)
        if annotation.size == (0, 0):
            report.note("width or height absent, read from the image", "image", [path.name])
            return upright
        if annotation.size == upright or annotation.size == images.size_of(path, orientation=False):
            return annotation.size
    except UserError:
        report.error("image that cannot be read or is too large; fetch it again or remove it", "image", [path.name])
        return None
    text = "image whose size is not the annotated one; use the images that were annotated"
    report.error(text, "image", [path.name])
    return None


def _boxes(
    annotation: voc_xml.Annotation, size: tuple[int, int], file: str, report: Report
) -> tuple[Float32[np.ndarray, "n 4"], np.ndarray]:
    """Boxes in continuous pixels, and the rows of the objects that can be used."""
    corners = annotation.corners
    height, width = size
    boxes = corners - np.array([1, 1, 0, 0])
    clipped = np.clip(boxes, 0, np.array([width, height, width, height]))
    # As it will be stored: a sliver far from the origin may vanish in float32.
    edges = clipped.astype(np.float32)
    named = np.array([bool(name) for name in annotation.names], bool)
    numeric = np.isfinite(corners).all(axis=1)
    solid = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    inside = (edges[:, 2:] > edges[:, :2]).all(axis=1)
    moved = (np.abs(clipped - boxes) > 1).any(axis=1)
    for text, which in (
        ("object without a name, dropped", ~named),
        ("box absent or not four numbers, dropped", named & ~numeric),
        ("box without area, dropped", named & numeric & ~solid),
        ("box outside the image, dropped", named & numeric & solid & ~inside),
        ("box reaches more than a pixel outside the image, clipped", named & numeric & solid & inside & moved),
    ):
        if which.any():
            report.warning(text, "file", [file] * int(which.sum()))
    return edges, np.flatnonzero(named & numeric & solid & inside)


def _classes(found: Sequence[_Image], categories: Sequence[Category] | None, report: Report) -> tuple[Category, ...]:
    names = {name for image in found for name in image.names}
    if categories is not None:
        known = [category.name for category in categories]
        if strange := sorted(names.difference(known)):
            text = f"class that the training set does not have (it has {', '.join(known)}), rename or remove it"
            report.error(text, "class", strange)
        return tuple(categories)
    twenty = published_classes(20)
    return twenty if names <= {category.name for category in twenty} else numbered(sorted(names))


def _record(image: _Image, class_of: dict[str, int]) -> Record:
    # An unknown class is an error already; what else is in the image can still be looked at.
    rows = [i for i, name in enumerate(image.names) if name in class_of]
    boxes = image.boxes[rows]
    return Record(
        image_id=image.number,
        source=image.path,
        height=image.size[0],
        width=image.size[1],
        boxes=boxes,
        classes=np.array([class_of[image.names[i]] for i in rows], np.int32),
        crowd=np.zeros(len(rows), bool),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        segmentations=(None,) * len(rows),
        file_name=image.path.name,
        difficult=image.difficult[rows],
    )
