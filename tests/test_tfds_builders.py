"""Data sets survive the way through TensorFlow Datasets bit for bit, and without TensorFlow."""

import pickle
import sys
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from pycocotools import mask as rle

from mrcnn_jax.data import shapes, tfds_builders
from mrcnn_jax.data.dataset import Category, Dataset, Record
from mrcnn_jax.errors import UserError

PERSON = Category(7, "person", ("nose", "left", "right"), (0, 2, 1), ((0, 1), (0, 2)))
THING = Category(90, "a thing, or two")


def assert_same(a: Record, b: Record):
    """Every field, dtypes and bits included; images as pixels."""
    for field in fields(Record):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name == "source":
            np.testing.assert_array_equal(a.image(), b.image())
        elif isinstance(x, np.ndarray):
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), field.name
        else:
            assert x == y, field.name


def odd_records(png: bytes) -> list[Record]:
    crowd = rle.encode(np.asfortranarray(np.eye(16, 24, dtype=np.uint8)))
    empty = Record(
        image_id=2**40,
        source=png,
        height=16,
        width=24,
        boxes=np.zeros((0, 4), np.float32),
        classes=np.zeros(0, np.int32),
        crowd=np.zeros(0, bool),
        areas=np.zeros(0, np.float32),
        segmentations=(),
    )
    full = replace(
        empty,
        image_id=-3,
        boxes=np.array([[0.1, 1 / 3, 7.7, 9], [0, 0, 16, 16], [2, 2, 2.5, 3]], np.float32),
        classes=np.array([2, 1, 2], np.int32),
        crowd=np.array([False, True, False]),
        areas=np.array([0.1, 16, np.pi], np.float32),
        segmentations=([[0.1, 1 / 3, 7.7, 1, 7.7, 9.0], [1, 2, 3, 4, 5, 1e-9]], crowd, None),
        keypoints=np.arange(27, dtype=np.float32).reshape(3, 3, 3) / 7,
        annotation_ids=np.array([2**53 + 1, 5, 4], np.int64),
        file_name="sub dir/Zürich.png",
        ignored_region=crowd,
    )
    no_objects = {"keypoints": np.zeros((0, 3, 3), np.float32), "annotation_ids": np.zeros(0, np.int64)}
    no_objects["difficult"] = np.zeros(0, bool)
    bare = replace(full, keypoints=None, annotation_ids=None)
    marked = [replace(full, difficult=np.array(marks, bool)) for marks in ((0, 1, 1), (0, 0, 0))]
    return [empty, full, replace(empty, **no_objects), bare, *marked]


@pytest.fixture(scope="module")
def png() -> bytes:
    return cv2.imencode(".png", np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3))[1].tobytes()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A data set of two splits, written in several shards."""
    data_dir = tmp_path_factory.mktemp("tfds")
    datasets = {split: shapes.load(split, 7, seed=1, crowd_rate=0.5, empty_rate=0.2) for split in ("train", "val")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds_builders, "_IMAGES_PER_SHARD", 3)
        directory = tfds_builders.write(datasets, data_dir, "shapes")
    return data_dir, directory, datasets


def test_drawn_shapes_round_trip(drawn):
    data_dir, directory, datasets = drawn
    assert directory == data_dir / "coco_instances" / "shapes" / "1.0.0"
    assert len(list(directory.glob("*-train.array_record-*-of-00003"))) == 3
    for split, dataset in datasets.items():
        loaded = tfds_builders.load(data_dir, split)
        assert loaded.categories == dataset.categories
        assert len(loaded.records) == 7
        for before, after in zip(dataset.records, loaded.records, strict=True):
            assert_same(before, after)
        assert loaded.to_coco()["annotations"] == dataset.to_coco()["annotations"]


def test_odd_records_round_trip(tmp_path, png):
    records = odd_records(png)
    tfds_builders.write({"odd": Dataset((PERSON, THING), records)}, tmp_path)
    loaded = tfds_builders.load(tmp_path, "odd")
    assert loaded.categories == (PERSON, THING)
    for before, after in zip(records, loaded.records, strict=True):
        assert_same(before, after)
        # The very bytes of the file, not another encoding of its pixels.
        assert after.source == before.source


def test_data_sets_written_before_there_was_a_mark_for_difficult_objects_are_read(tmp_path, png):
    record = odd_records(png)[4]
    tfds_builders.write({"train": Dataset((PERSON, THING), [record])}, tmp_path)
    example = tfds_builders.load(tmp_path, "train").records._source[0]
    assert example.pop("has_difficult")
    del example["objects"]["difficult"]
    assert_same(tfds_builders._decode(example, 3), replace(record, difficult=None))


def test_without_keypoints(tmp_path, png):
    records = [replace(r, keypoints=None) for r in odd_records(png)]
    tfds_builders.write({"train": Dataset((THING, replace(THING, name="another")), records)}, tmp_path)
    for before, after in zip(records, tfds_builders.load(tmp_path, "train").records, strict=True):
        assert_same(before, after)


def test_image_files_are_stored_as_they_are(tmp_path, png):
    path = tmp_path / "image.png"
    path.write_bytes(png)
    record = replace(odd_records(png)[0], source=path)
    tfds_builders.write({"train": Dataset((PERSON,), [record])}, tmp_path / "data")
    assert tfds_builders.load(tmp_path / "data", "train").records[0].source == png


def test_tfds_itself_reads_it(drawn):
    data_dir, directory, datasets = drawn
    source = tfds.data_source("coco_instances/shapes", split="train", data_dir=data_dir)
    record = datasets["train"].records[0]
    np.testing.assert_array_equal(source[0]["image"], record.image())
    np.testing.assert_array_equal(source[0]["objects"]["box"], record.boxes)
    info = tfds.builder_from_directory(directory).info
    assert info.features["objects"]["label"].names == list(datasets["train"].classes)
    assert info.splits["val"].num_examples == 7


def test_records_are_random_access_and_pickle(drawn):
    data_dir, _, datasets = drawn
    loaded = tfds_builders.load(data_dir, "train[2:5]")
    assert len(loaded.records) == 3
    assert_same(loaded.records[-1], datasets["train"].records[4])
    again = pickle.loads(pickle.dumps(loaded))
    assert_same(again.records[0], datasets["train"].records[2])
    with pytest.raises(IndexError):
        loaded.records[3]


def test_load_names_what_is_wrong(drawn, tmp_path):
    data_dir, directory, datasets = drawn
    assert len(tfds_builders.load(directory, "val").records) == 7
    with pytest.raises(UserError, match=r"no split 'test', only train, val"):
        tfds_builders.load(data_dir, "test")
    with pytest.raises(UserError, match="no TFDS data set"):
        tfds_builders.load(tmp_path, "train")
    with pytest.raises(UserError, match="no TFDS data set"):
        tfds_builders.load(tmp_path / "missing", "train")
    for name in ("one", "two"):
        tfds_builders.write({"train": datasets["train"].subset([0])}, tmp_path, name)
    with pytest.raises(UserError, match="2 TFDS data sets"):
        tfds_builders.load(tmp_path, "train")


def test_write_names_what_is_wrong(drawn, tmp_path, png):
    data_dir, _, datasets = drawn
    with pytest.raises(UserError, match="exists"):
        tfds_builders.write(datasets, data_dir, "shapes")
    with pytest.raises(UserError, match="same categories"):
        tfds_builders.write({"train": datasets["train"], "val": Dataset((PERSON,), odd_records(png))}, tmp_path)
    with pytest.raises(UserError, match="'my set'"):
        tfds_builders.write(datasets, tmp_path, "my set")
    with pytest.raises(UserError, match="'val' has no images"):
        tfds_builders.write({"val": datasets["val"].subset([])}, tmp_path)
    gone = replace(odd_records(png)[0], source=tmp_path / "gone.png", image_id=12)
    with pytest.raises(UserError, match=r"gone.png: image id 12"):
        tfds_builders.write({"train": Dataset((PERSON,), [gone])}, tmp_path)
    with pytest.raises(UserError, match="image id -3: keypoints"):
        tfds_builders.write({"train": Dataset((THING,), [odd_records(png)[1]])}, tmp_path)
    # A write that failed leaves nothing that could be taken for a data set.
    with pytest.raises(UserError, match="no TFDS data set"):
        tfds_builders.load(tmp_path, "train")


def test_tensorflow_is_not_imported(drawn):
    assert "tensorflow" not in sys.modules
