"""A data set on the host: named classes and a sequence of annotated images, whatever format they came from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mrcnn_jax.data import images
from mrcnn_jax.errors import UserError
from mrcnn_jax.types import Proposals


@dataclass(frozen=True)
class Category:
    """A class of objects; class `i + 1` of a data set is `categories[i]`."""

    # The data set's own id, used in results.
    id: int
    name: str
    keypoints: tuple[str, ...] = ()
    # Permutation of the keypoints under a horizontal flip.
    flip: tuple[int, ...] = ()
    # Pairs of keypoints joined by a limb, counted from zero (COCO counts from one).
    skeleton: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Record:
    """One image and its n annotations, as NumPy, in pixels of the upright image."""

    image_id: int
    # A file, the encoded image itself, or its upright RGB pixels.
    source: Path | bytes | np.ndarray
    height: int
    width: int
    # float32 [n, 4], xyxy, inside the image.
    boxes: np.ndarray
    # int32 [n], index into the data set's categories plus one.
    classes: np.ndarray
    # bool [n]
    crowd: np.ndarray
    # float32 [n], COCO's "area": what makes an object small, medium or large in evaluation.
    areas: np.ndarray
    # One an object: polygons, a list of flat [x, y, x, y, ...] lists; or compressed RLE,
    # {"size": [h, w], "counts": bytes}; or None where only a box was annotated.
    segmentations: tuple
    # float32 [n, j, 3]: x, y exactly as the COCO file has them, and COCO's visibility 0, 1 or 2.
    keypoints: np.ndarray | None = None
    # int64 [n]
    annotation_ids: np.ndarray | None = None
    file_name: str = ""
    # Regions that come with the image, best first, all of them valid; they may reach over its border.
    proposals: Proposals | None = None
    # Polygons or RLE of what nobody annotated (Cityscapes' void): what is found there is neither right nor wrong.
    ignored_region: list | dict | None = None
    # bool [n], Pascal VOC's mark of what can hardly be seen: not to be missed, nor wrong to find. None is none.
    difficult: np.ndarray | None = None

    def image(self) -> np.ndarray:
        """Decodes the image, uint8 RGB [height, width, 3].

        It is put upright as its EXIF tag says, unless the annotations give the size of the picture as stored: then
        they were drawn on that, and it is not turned.

        Raises:
            UserError: the file is missing or damaged, or its size is not the annotated one; names file and image id.
        """
        try:
            pixels = images.decode(self.source)
            if pixels.shape[:2] != (self.height, self.width):
                upright = pixels.shape
                pixels = images.decode(self.source, orientation=False)
                if pixels.shape[:2] != (self.height, self.width):
                    raise UserError(
                        f"{self._name()}: the file is {upright[1]} x {upright[0]} pixels but its annotations say "
                        f"{self.width} x {self.height}; use the images that were annotated, or correct width and height"
                    )
        except UserError as error:
            raise UserError(f"image id {self.image_id}: {error}") from error
        return pixels

    def without_difficult(self) -> "Record":
        """The same image without its difficult objects."""
        if self.difficult is None or not self.difficult.any():
            return self
        keep = ~self.difficult
        arrays = ("boxes", "classes", "crowd", "areas", "keypoints", "annotation_ids", "difficult")
        values = {name: getattr(self, name) for name in arrays}
        return replace(
            self,
            segmentations=tuple(self.segmentations[i] for i in np.flatnonzero(keep)),
            **{name: None if value is None else value[keep] for name, value in values.items()},
        )

    def _name(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else self.file_name or "image"


@dataclass(frozen=True)
class Dataset:
    """Classes and images; `records` may build each record on access, and pickles to worker processes."""

    categories: tuple[Category, ...]
    records: Sequence[Record]
    name: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; class `i + 1` is `classes[i]`."""
        return tuple(category.name for category in self.categories)

    @property
    def num_classes(self) -> int:
        """Foreground classes K."""
        return len(self.categories)

    def subset(self, indices: Iterable) -> "Dataset":
        """The same classes with the records at `indices`, in that order."""
        return replace(self, records=_Subset(self.records, tuple(int(i) for i in indices)))

    def map_records(self, change: Callable[[Record], Record]) -> "Dataset":
        """The same data set with each record changed once it is read."""
        return replace(self, records=_Mapped(self.records, change))

    def without_difficult(self) -> "Dataset":
        """The same images without their difficult objects; an image that has no others stays, as one without any."""
        return self.map_records(Record.without_difficult)

    def to_coco(self) -> dict:
        """The ground truth as a COCO JSON dictionary, with the data set's own category ids.

        An image's `ignored_region` is a segmentation in its entry, which COCO itself does not have.

        Annotation ids are the file's own where every record has positive ones without repetition, else 1, 2, ... (0
        would spoil COCO's matching, which reads it as "no match"). Boxes are rounded to a thousandth of a pixel,
        which brings COCO's two decimals back from float32. Difficult objects have a `"difficult": 1`, others nothing.
        """
        coco_images, annotations, owned = [], [], True
        for record in self.records:
            image = {
                "id": int(record.image_id),
                "file_name": record.file_name or (record.source.name if isinstance(record.source, Path) else ""),
                "height": int(record.height),
                "width": int(record.width),
            }
            if record.ignored_region is not None:
                image["ignored_region"] = _segmentation_json(record.ignored_region)
            coco_images.append(image)
            owned = owned and record.annotation_ids is not None
            annotations.extend(self._annotations(record))
        ids = {a["id"] for a in annotations}
        if not owned or len(ids) < len(annotations) or min(ids, default=1) < 1:
            for number, annotation in enumerate(annotations, start=1):
                annotation["id"] = number
        return {
            "info": {"description": self.name},
            "images": coco_images,
            "annotations": annotations,
            "categories": [_category_json(category) for category in self.categories],
        }

    def _annotations(self, record: Record) -> list[dict]:
        annotations = []
        for i, (x1, y1, x2, y2) in enumerate(record.boxes.astype(np.float64).tolist()):
            category = self.categories[int(record.classes[i]) - 1]
            annotation = {
                "id": 0 if record.annotation_ids is None else int(record.annotation_ids[i]),
                "image_id": int(record.image_id),
                "category_id": category.id,
                "bbox": [round(x1, 3), round(y1, 3), round(x2 - x1, 3), round(y2 - y1, 3)],
                "area": round(float(record.areas[i]), 4),
                "iscrowd": int(record.crowd[i]),
            }
            if record.segmentations[i] is not None:
                annotation["segmentation"] = _segmentation_json(record.segmentations[i])
            if record.difficult is not None and record.difficult[i]:
                annotation["difficult"] = 1
            if record.keypoints is not None and category.keypoints:
                points = record.keypoints[i, : len(category.keypoints)].astype(np.float64)
                annotation["keypoints"] = [round(value, 3) for value in points.reshape(-1).tolist()]
                annotation["num_keypoints"] = int((points[:, 2] > 0).sum())
            annotations.append(annotation)
        return annotations


class _Subset(Sequence):
    def __init__(self, records: Sequence[Record], indices: tuple[int, ...]):
        self._records, self._indices = records, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index):
        return self._records[self._indices[index]]


class _Mapped(Sequence):
    def __init__(self, records: Sequence[Record], change: Callable[[Record], Record]):
        self._records, self._change = records, change

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index):
        return self._change(self._records[index])


def _segmentation_json(segmentation: list | dict) -> list | dict:
    if isinstance(segmentation, list):
        return segmentation
    counts = segmentation["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(n) for n in segmentation["size"]], "counts": counts}


def _category_json(category: Category) -> dict:
    entry = {"id": category.id, "name": category.name}
    if category.keypoints:
        entry["keypoints"] = list(category.keypoints)
        entry["skeleton"] = [[a + 1, b + 1] for a, b in category.skeleton]
    return entry
