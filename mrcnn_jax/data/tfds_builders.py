"""A TensorFlow Datasets builder for instance segmentation, written and read without TensorFlow.

TFDS's own `coco` has no segmentations and needs TensorFlow. `CocoInstances` stores all that a `Record` holds, from any
`Dataset`, as ArrayRecord shards; `tfds.data_source("coco_instances/NAME", split="train", data_dir=DIR)` and
`tfds.builder_from_directory` read them as any other TFDS data set, and `load` gives the `Dataset` back, bit for bit.

It is a `ShardBasedBuilder`, since that streams: a `GeneratorBasedBuilder` shuffles through `tf.io.gfile` beyond
1,000 MiB and then needs TensorFlow. Records keep their order; the pipeline shuffles them.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

from mrcnn_jax.data.dataset import Category, Dataset, Record
from mrcnn_jax.errors import UserError

# TFDS holds the shard that it writes in memory: of COCO this is about 160 MB.
_IMAGES_PER_SHARD = 1000


class CocoInstances(tfds.core.ShardBasedBuilder):
    """Images with boxes, classes, crowd and difficult flags, areas, masks and keypoints.

    Boxes are float32 xyxy in pixels, not TFDS's normalised `BBoxFeature`, which does not give the same bits back. A
    segmentation is text, COCO's own JSON: polygons, compressed RLE or null. The classes' own ids, keypoint names, flips
    and skeletons are the metadata.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. TFDS would look for a list of checksums, with a package that it does not itself require.
    url_infos = None

    def __init__(self, *, datasets: dict[str, Dataset], **kwargs):
        self._datasets = datasets
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        categories = next(iter(self._datasets.values())).categories
        objects = {
            "annotation_id": np.int64,
            "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            "label": tfds.features.ClassLabel(names=[c.name for c in categories]),
            "crowd": np.bool_,
            "difficult": np.bool_,
            "area": np.float32,
            "segmentation": tfds.features.Text(),
        }
        # TFDS cannot read a sequence of tensors of shape (0, 3).
        if num_keypoints := _num_keypoints(categories):
            objects["keypoints"] = tfds.features.Tensor(shape=(num_keypoints, 3), dtype=np.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images with annotated instances: boxes, masks and keypoints.",
            features=tfds.features.FeaturesDict(
                {
                    # The file as it was, so JPEG stays JPEG and EXIF tags stay.
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "image_id": np.int64,
                    "file_name": tfds.features.Text(),
                    "height": np.int32,
                    "width": np.int32,
                    "ignored_region": tfds.features.Text(),
                    # Whether the record had these at all; without them zeros are stored.
                    "has_keypoints": np.bool_,
                    "has_annotation_ids": np.bool_,
                    "has_difficult": np.bool_,
                    "objects": tfds.features.Sequence(objects),
                }
            ),
            metadata=tfds.core.MetadataDict(categories=[asdict(c) for c in categories]),
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterator]]]:
        del dl_manager
        return {
            split: [
                partial(self._examples, dataset, range(start, min(start + _IMAGES_PER_SHARD, len(dataset.records))))
                for start in range(0, len(dataset.records), _IMAGES_PER_SHARD)
            ]
            for split, dataset in self._datasets.items()
        }

    def _examples(self, dataset: Dataset, indices: range) -> Iterator[tuple[int, dict]]:
        num_keypoints = _num_keypoints(dataset.categories)
        for index in indices:
            yield index, _encode(dataset.records[index], num_keypoints)


def _num_keypoints(categories: Sequence[Category]) -> int:
    return max((len(c.keypoints) for c in categories), default=0)


def _encode(record: Record, num_keypoints: int) -> dict:
    n = len(record.boxes)
    keypoints = np.zeros((n, num_keypoints, 3), np.float32) if record.keypoints is None else record.keypoints
    if keypoints.shape != (n, num_keypoints, 3):
        raise UserError(
            f"image id {record.image_id}: keypoints have the shape {keypoints.shape}, "
            f"but the categories declare {num_keypoints} for each of {n} objects; correct one or the other"
        )
    ids = np.zeros(n, np.int64) if record.annotation_ids is None else record.annotation_ids
    difficult = np.zeros(n, bool) if record.difficult is None else record.difficult
    return {
        "image": _image_bytes(record),
        "image_id": record.image_id,
        "file_name": record.file_name,
        "height": record.height,
        "width": record.width,
        "ignored_region": _text(record.ignored_region),
        "has_keypoints": record.keypoints is not None,
        "has_annotation_ids": record.annotation_ids is not None,
        "has_difficult": record.difficult is not None,
        "objects": [
            {
                "annotation_id": ids[i],
                "box": record.boxes[i],
                "label": int(record.classes[i]) - 1,
                "crowd": bool(record.crowd[i]),
                "difficult": bool(difficult[i]),
                "area": record.areas[i],
                "segmentation": _text(record.segmentations[i]),
                **({"keypoints": keypoints[i]} if num_keypoints else {}),
            }
            for i in range(n)
        ],
    }


def _text(segmentation: list | dict | None) -> str:
    # bytes, the counts of an RLE, are the only thing that JSON does not know.
    return json.dumps(segmentation, default=bytes.decode, separators=(",", ":"))


def _segmentation(text: bytes) -> list | dict | None:
    segmentation = json.loads(text)
    if isinstance(segmentation, dict):
        segmentation["counts"] = segmentation["counts"].encode()
    return segmentation


def _image_bytes(record: Record) -> bytes:
    """The encoded image; one that is held as pixels becomes a PNG."""
    if isinstance(record.source, bytes):
        return record.source
    if isinstance(record.source, np.ndarray):
        return cv2.imencode(".png", cv2.cvtColor(record.source, cv2.COLOR_RGB2BGR))[1].tobytes()
    try:
        return record.source.read_bytes()
    except OSError as error:
        raise UserError(f"{record.source}: image id {record.image_id} cannot be read: {error.strerror}") from error


def _decode(example: dict, num_keypoints: int) -> Record:
    objects = example["objects"]
    # A sequence of length zero comes back without its trailing shape.
    boxes = np.asarray(objects["box"], np.float32).reshape(-1, 4)
    keypoints = np.asarray(objects.get("keypoints", ()), np.float32).reshape(len(boxes), num_keypoints, 3)
    return Record(
        image_id=int(example["image_id"]),
        source=example["image"],
        height=int(example["height"]),
        width=int(example["width"]),
        boxes=boxes,
        classes=np.asarray(objects["label"], np.int32) + 1,
        crowd=np.asarray(objects["crowd"], bool),
        areas=np.asarray(objects["area"], np.float32),
        segmentations=tuple(map(_segmentation, objects["segmentation"])),
        keypoints=keypoints if example["has_keypoints"] else None,
        annotation_ids=np.asarray(objects["annotation_id"], np.int64) if example["has_annotation_ids"] else None,
        file_name=example["file_name"].decode(),
        # Files of an earlier version have none.
        ignored_region=_segmentation(example.get("ignored_region", b"null")),
        # Data sets that were written before there was the flag do not tell.
        difficult=np.asarray(objects["difficult"], bool) if example.get("has_difficult") else None,
    )


@dataclass(frozen=True)
class TfdsRecords(Sequence[Record]):
    """The records of one split; an image stays encoded until it is asked for. The files are opened in each process."""

    directory: Path
    split: str
    num_keypoints: int

    @cached_property
    def _source(self):
        builder = tfds.builder_from_directory(self.directory)
        decoders = {"image": tfds.decode.SkipDecoding()}
        # TFDS's decorator hides the signature from the type checker.
        return builder.as_data_source(split=self.split, decoders=decoders)  # pyright: ignore[reportCallIssue]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return _decode(self._source[index % len(self)], self.num_keypoints)

    def __reduce__(self):
        return TfdsRecords, (self.directory, self.split, self.num_keypoints)


def write(datasets: dict[str, Dataset], data_dir: str | Path, name: str = "default") -> Path:
    """Writes data sets as the splits of one TFDS data set, `coco_instances/{name}`.

    Writing is atomic: if it is broken off, no half-written data set is left.

    Args:
        datasets: for each split its data; all have the same categories.
        data_dir: where TFDS data sets are kept.
        name: of this one.

    Returns:
        Its folder, `{data_dir}/coco_instances/{name}/1.0.0`.

    Raises:
        UserError: the categories differ between splits, or two of them have one name; TFDS does not allow the name of
            the data set or of a split; a split is empty; the data set exists; an image cannot be read.
    """
    if not datasets or len({d.categories for d in datasets.values()}) != 1:
        raise UserError(f"tfds: the splits {sorted(datasets)} must have the same categories, and there must be one")
    for word in (name, *datasets):
        if not re.fullmatch(r"[A-Za-z0-9_]+", word):
            raise UserError(f"tfds: '{word}' cannot name a data set or split; use letters, digits and underscores")
    names = next(iter(datasets.values())).classes
    if len(set(names)) < len(names):
        raise UserError("tfds: two categories have the same name, which TFDS does not allow; rename one")
    for split, dataset in datasets.items():
        if not len(dataset.records):
            raise UserError(f"tfds: the split '{split}' has no images, which TFDS cannot read; leave it out")
    builder = CocoInstances(
        datasets=datasets,
        data_dir=Path(data_dir).expanduser(),
        config=tfds.core.BuilderConfig(name=name, version=CocoInstances.VERSION),
        file_format="array_record",
    )
    directory = Path(builder.data_dir)
    if directory.exists():
        raise UserError(f"{directory}: this data set exists; remove it or choose another name")
    # TFDS insists on a folder for downloads, of which there are none.
    with tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(download_dir=downloads)
    return directory


def load(data_dir: str | Path, split: str) -> Dataset:
    """Reads a data set that `write` made.

    Args:
        data_dir: its folder, or any folder above it that holds no other.
        split: as it was written, or a part of it in the notation of TFDS: `train[:10%]`.

    Raises:
        UserError: there is no such data set, more than one, or no such split.
    """
    data_dir = Path(data_dir).expanduser()
    # data_dir may be the version's folder, or one to three above it.
    found = [p.parent for depth in range(4) for p in sorted(data_dir.glob("*/" * depth + "dataset_info.json"))]
    if len(found) != 1:
        have = f"{len(found)} TFDS data sets ({', '.join(map(str, found))})" if found else "no TFDS data set"
        raise UserError(f"{data_dir}: there is {have} here; give the folder that holds one dataset_info.json")
    [directory] = found
    builder = tfds.builder_from_directory(directory)
    metadata = builder.info.metadata or {}
    if "categories" not in metadata:
        raise UserError(
            f"{directory}: this TFDS data set has no instances; write it with mrcnn_jax.data.tfds_builders.write"
        )
    if split.split("[")[0] not in builder.info.splits:
        raise UserError(f"{directory}: there is no split '{split}', only {', '.join(builder.info.splits)}")
    categories = _categories(metadata["categories"])
    return Dataset(categories, TfdsRecords(directory, split, _num_keypoints(categories)), builder.info.full_name)


def _categories(entries: list[dict]) -> tuple[Category, ...]:
    return tuple(
        Category(
            id=entry["id"],
            name=entry["name"],
            keypoints=tuple(entry["keypoints"]),
            flip=tuple(entry["flip"]),
            skeleton=tuple((a, b) for a, b in entry["skeleton"]),
        )
        for entry in entries
    )
