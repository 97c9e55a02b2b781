"""The embedded data set: drawn shapes with exact boxes, masks and keypoints, made from a seed and no files.

Eight classes told apart by shape alone: colour and texture are random. Objects overlap (painter's order), reach over
the border, are rotated, stretched and of any size in a range, before a textured background with distractors. What is
annotated is what is visible: the mask holds the pixels whose centre is in the shape and in none above it, the box is
the mask's, the area its pixel count. Keypoints are the outermost points of the whole shape as it lies in the picture,
so that they have a meaning for a circle too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float32
from pycocotools import mask as rle

from mrcnn_jax.data import drawing
from mrcnn_jax.data.dataset import Category, Dataset, Record
from mrcnn_jax.errors import UserError

KEYPOINTS = ("top", "right", "bottom", "left")
CATEGORIES = tuple(
    Category(id=i + 1, name=name, keypoints=KEYPOINTS, flip=(0, 3, 2, 1), skeleton=((0, 2), (1, 3)))
    for i, name in enumerate(drawing.SHAPES)
)
SPLITS = ("train", "val")

# An object is drawn and annotated when as much as this part of the image's area can be seen of it (33 pixels of
# 128 x 128), besides the part of its own area that `load` is given.
_MIN_AREA = 0.002


@dataclass(frozen=True)
class _Object:
    stamp: drawing.Stamp
    label: int
    crowd: bool


@dataclass(frozen=True)
class DrawnRecords(Sequence[Record]):
    """The records of a split, drawn when asked for. Record i is a pure function of the fields and i."""

    split: str
    num_images: int
    seed: int
    size: tuple[int, int]
    max_size: tuple[int, int]
    max_objects: int
    scale: tuple[float, float]
    min_visible: float
    contrast: int
    clutter: int
    noise: int
    empty_rate: float
    crowd_rate: float
    num_classes: int

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Record:
        if not -self.num_images <= index < self.num_images:
            raise IndexError(f"record {index} of {self.num_images}")
        index %= self.num_images
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        height, width = (int(rng.integers(low, high + 1)) for low, high in zip(self.size, self.max_size, strict=True))
        objects = self._arrange(rng, height, width)
        visible, objects = _visible(objects, height, width, self.min_visible)

        image = drawing.background(rng, height, width, self.clutter)
        for item in reversed(objects):
            drawing.paint(rng, image, item.stamp, self.contrast)
        keypoints = [
            np.zeros((4, 3), np.float32) if o.crowd else _keypoints(o.stamp, m)
            for o, m in zip(objects, visible, strict=True)
        ]
        return Record(
            image_id=index + 1,
            source=drawing.finish(rng, image, self.noise),
            height=height,
            width=width,
            boxes=np.array([_box(m) for m in visible], np.float32).reshape(-1, 4),
            classes=np.array([o.label for o in objects], np.int32),
            crowd=np.array([o.crowd for o in objects], bool),
            areas=np.array([m.sum() for m in visible], np.float32),
            segmentations=tuple(rle.encode(np.asfortranarray(m, np.uint8)) for m in visible),
            keypoints=np.array(keypoints, np.float32).reshape(-1, 4, 3),
            # Unique over the split: an image has at most max_objects and one crowd.
            annotation_ids=index * (self.max_objects + 1) + np.arange(1, len(objects) + 1, dtype=np.int64),
            file_name=f"{self.split}_{index + 1:06d}.png",
        )

    def _arrange(self, rng: np.random.Generator, height: int, width: int) -> list[_Object]:
        """Places shapes at random, nearest first; a crowd is farthest."""
        if rng.random() < self.empty_rate:
            return []
        side = min(height, width)
        objects = []
        for _ in range(int(rng.integers(1, self.max_objects + 1))):
            low, high = self.scale
            # The square makes small objects more frequent, as they are in photographs.
            radius = side * (low + (high - low) * rng.random() ** 2) / 2
            # A centre keeps half a radius from the border: of a shape cut in two the class can still be told.
            x, y = (radius / 2 + rng.random() * (extent - radius) for extent in (width, height))
            objects.append(_random_object(rng, x, y, radius, self.num_classes))
        if rng.random() < self.crowd_rate:
            objects.append(_random_crowd(rng, height, width, 0.035 * side, self.num_classes))
        return objects


def _random_object(rng: np.random.Generator, x: float, y: float, radius: float, num_classes: int) -> _Object:
    label = int(rng.integers(num_classes))
    shape = drawing.stamp(CATEGORIES[label].name, x, y, radius, 0.7 + 0.3 * rng.random(), int(rng.integers(360)))
    return _Object(shape, label + 1, False)


def _random_crowd(rng: np.random.Generator, height: int, width: int, radius: float, num_classes: int) -> _Object:
    """A dense field of tiny shapes of one class."""
    label = int(rng.integers(num_classes))
    rows, columns = (int(n) for n in rng.integers(3, 6, 2))
    pitch = 2.4 * radius
    top, left = rng.random() * (height - rows * pitch), rng.random() * (width - columns * pitch)
    centres = [(left + (c + 0.5) * pitch, top + (r + 0.5) * pitch) for r in range(rows) for c in range(columns)]
    # Each is moved by up to a third of its radius, so that neighbours just about touch.
    shifts = (rng.random((len(centres), 2)) - 0.5) * radius * 0.6
    stamps = [
        drawing.stamp(CATEGORIES[label].name, x + dx, y + dy, radius, 1.0, int(rng.integers(360)))
        for (x, y), (dx, dy) in zip(centres, shifts.tolist(), strict=True)
    ]
    return _Object(drawing.merge(stamps), label + 1, True)


def _visible(
    objects: list[_Object], height: int, width: int, min_visible: float
) -> tuple[list[Bool[np.ndarray, "h w"]], list[_Object]]:
    """The visible mask of each object, nearest first, and the objects without those that are nearly hidden.

    From front to back one pass is exact: whether an object stays depends only on those before it.
    """
    free = np.ones((height, width), bool)
    masks, kept = [], []
    for item in objects:
        here, window = item.stamp.crop(height, width)
        mask = np.zeros_like(free)
        mask[here] = item.stamp.inside[window] & free[here]
        if mask.sum() >= max(min_visible * item.stamp.inside.sum(), _MIN_AREA * height * width):
            free &= ~mask
            masks.append(mask)
            kept.append(item)
    return masks, kept


def _box(mask: Bool[np.ndarray, "h w"]) -> tuple[np.integer, np.integer, np.integer, np.integer]:
    """The smallest box around a mask; pixel i covers [i, i + 1)."""
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return x[0], y[0], x[-1] + 1, y[-1] + 1


def _keypoints(stamp: drawing.Stamp, visible: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "4 3"]:
    """Outermost points of the whole shape: visible (2), hidden by another shape (1), or outside the image (0, 0, 0)."""
    height, width = visible.shape
    points = np.zeros((4, 3), np.float32)
    for row, (x, y) in zip(points, stamp.extremes(), strict=True):
        if 0 <= x < width and 0 <= y < height:
            row[:] = x, y, 2 if visible[int(y), int(x)] else 1
    return points


def load(
    split: str,
    num_images: int,
    seed: int = 0,
    size: tuple[int, int] = (128, 128),
    max_size: tuple[int, int] | None = None,
    max_objects: int = 8,
    scale: tuple[float, float] = (0.1, 0.7),
    min_visible: float = 0.2,
    contrast: int = 4,
    clutter: int = 4,
    noise: int = 8,
    empty_rate: float = 0.02,
    crowd_rate: float = 0.03,
    num_classes: int = len(CATEGORIES),
) -> Dataset:
    """A split of the drawn data set; nothing is drawn before it is asked for.

    Args:
        split: 'train' or 'val'; the two share no image.
        num_images: records in the split; a longer split begins with the shorter one.
        seed: of everything.
        size: height and width of an image in pixels; with `max_size` the smallest.
        max_size: the largest; each side is drawn evenly between the two.
        max_objects: shapes placed in an image, from 1; those that are hardly visible are left out.
        scale: smallest and largest extent of a shape, as a part of the image's shorter side.
        min_visible: how much of a shape's own area has to be seen; one that others hide more of is left out.
        contrast: colours tried for the one that stands out most; 1 is hardest.
        clutter: most distracting lines in an image; 0 also leaves out patches.
        noise: grey levels of sensor noise, 0 to 127.
        empty_rate: part of the images without any object.
        crowd_rate: part of the images with a crowd region.
        num_classes: how many of the eight shapes there are, the first of `CATEGORIES`.

    Raises:
        UserError: an argument is out of its range.
    """
    max_size = max_size or size
    records = DrawnRecords(
        split, num_images, seed, size, max_size, max_objects, scale,
        min_visible, contrast, clutter, noise, empty_rate, crowd_rate, num_classes,
    )  # fmt: skip
    in_range = {
        "split": split in SPLITS,
        "num_images": num_images >= 0,
        "seed": seed >= 0,
        "size": min(size) >= 16,
        "max_size": all(low <= high for low, high in zip(size, max_size, strict=True)),
        "max_objects": max_objects >= 1,
        "scale": 0 < scale[0] <= scale[1] <= 1,
        "min_visible": 0 <= min_visible <= 1,
        "contrast": contrast >= 1,
        "clutter": clutter >= 0,
        "noise": 0 <= noise <= 127,
        "empty_rate": 0 <= empty_rate <= 1,
        "crowd_rate": 0 <= crowd_rate <= 1,
        "num_classes": 1 <= num_classes <= len(CATEGORIES),
    }
    for name, good in in_range.items():
        if not good:
            value = getattr(records, name)
            raise UserError(f"drawn shapes: {name}={value!r} is out of range; see mrcnn_jax.data.shapes.load")
    return Dataset(categories=CATEGORIES[:num_classes], records=records, name=f"shapes_{split}")


def write_coco(dataset: Dataset, out_dir: str | Path, split: str) -> None:
    """Writes any data set as a COCO folder: `{split}/*.png` and `annotations/instances_{split}.json`.

    Keypoints go into the same file. Whatever an image was, it becomes a PNG named by its id, with the same pixels.

    Raises:
        UserError: an image cannot be read, or not be written.
    """
    out_dir = Path(out_dir)
    (out_dir / split).mkdir(parents=True, exist_ok=True)
    (out_dir / "annotations").mkdir(exist_ok=True)
    coco = dataset.to_coco()
    for entry, record in zip(coco["images"], dataset.records, strict=True):
        entry["file_name"] = f"{record.image_id:012d}.png"
        path = out_dir / split / entry["file_name"]
        if not cv2.imwrite(str(path), cv2.cvtColor(record.image(), cv2.COLOR_RGB2BGR)):
            raise UserError(f"{path}: the image could not be written; is there space, and may this folder be written?")
    (out_dir / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))
