"""Cityscapes' images of instance ids become a data set, and so does the COCO JSON that is made of it."""

import dataclasses
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from cityscapes_scene import HEIGHT, WIDTH, random_ids, write
from PIL import Image

from mrcnn_jax.data import cityscapes, coco
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.data.segmentations import decode
from mrcnn_jax.errors import UserError

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import cityscapes_to_coco

NAMES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
A, B = ("aachen", "aachen_000000_000019"), ("bonn", "bonn_000003_000019")


def scene():
    """A car in two parts, a group of cars, a person that touches the last pixel, a caravan; the bonnet is void."""
    ids = np.full((HEIGHT, WIDTH), 7)
    ids[10:20, 30:50], ids[10:20, 38:41] = 26001, 17
    ids[5:8, 60:80] = 26
    ids[50:, 120:] = 24000
    ids[30:40, 5:15] = 29000
    ids[60:, :100] = 1
    return ids


@pytest.fixture
def root(tmp_path):
    return write(tmp_path, "val", {B: np.full((HEIGHT, WIDTH), 7), A: scene()})


def test_objects_groups_and_void(root):
    dataset, report = cityscapes.load(root, "val")
    assert dataset.classes == NAMES
    assert [c.id for c in dataset.categories] == [24, 25, 26, 27, 28, 31, 32, 33]
    first, second = dataset.records
    assert (first.image_id, first.height, first.width) == (1, HEIGHT, WIDTH)
    assert first.file_name == "leftImg8bit/val/aachen/aachen_000000_000019_leftImg8bit.png"
    assert first.image().shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(first.classes, [3, 1, 3])
    np.testing.assert_array_equal(first.crowd, [True, False, False])
    np.testing.assert_array_equal(first.areas, [60, 112, 170])
    np.testing.assert_array_equal(first.boxes, [[60, 5, 80, 8], [120, 50, 128, 64], [30, 10, 50, 20]])
    for id_, mask in zip((26, 24000, 26001), first.segmentations, strict=True):
        np.testing.assert_array_equal(decode(mask), scene() == id_)
    # A caravan is no void; its group would be.
    np.testing.assert_array_equal(decode(first.ignored_region), scene() == 1)
    assert (len(second.boxes), second.boxes.shape, second.segmentations, second.ignored_region) == (0, (0, 4), (), None)
    assert report.lines() == [
        "note: group of objects, taken as a crowd: 1 (annotation 1)",
        "note: image without annotations, kept as a negative: 1 (image 2)",
    ]
    assert pickle.loads(pickle.dumps(dataset)).records[0].annotation_ids.tolist() == [1, 2, 3]


def test_random_scenes_cover_their_pixels(tmp_path):
    rng = np.random.default_rng(0)
    scenes = {("ulm", f"ulm_{i:06d}_000019"): random_ids(rng) for i in range(8)}
    dataset, report = cityscapes.load(write(tmp_path, "val", scenes), "val")
    small = 0
    for record, ids in zip(dataset.records, scenes.values(), strict=True):
        own = [n for n in np.unique(ids) if (n // 1000 or n) in (24, 25, 26, 27, 28, 31, 32, 33)]
        for n, mask, box, area, crowd in zip(
            own, record.segmentations, record.boxes, record.areas, record.crowd, strict=True
        ):
            np.testing.assert_array_equal(decode(mask), ids == n)
            y, x = np.nonzero(ids == n)
            np.testing.assert_array_equal(box, [x.min(), y.min(), x.max() + 1, y.max() + 1])
            assert (area, crowd) == (len(x), n < 1000)
            small += len(x) < 100 and n > 1000
        void = np.isin(ids, (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30))
        assert void.any() == (record.ignored_region is not None)
        if void.any():
            np.testing.assert_array_equal(decode(record.ignored_region), void)
    assert small > 0
    assert f"object of fewer than 100 pixels, which Cityscapes does not score: {small}" in "\n".join(report.notes)


def test_training_keeps_no_void(tmp_path):
    dataset, _ = cityscapes.load(write(tmp_path, "train", {A: scene()}), "train")
    assert dataset.records[0].ignored_region is None


def test_classes_of_the_training_set(root):
    given = (Category(1, "car"), Category(2, "person"))
    dataset, _ = cityscapes.load(root, "val", given)
    assert [(c.id, c.name) for c in dataset.categories] == [(26, "car"), (24, "person")]
    np.testing.assert_array_equal(dataset.records[0].classes, [1, 2, 1])
    with pytest.raises(UserError, match=r"class that the training set does not have .*person"):
        cityscapes.load(root, "val", given[:1])


def test_as_coco_json(root, capsys):
    dataset, _ = cityscapes.load(root, "val")
    cityscapes_to_coco.main([str(root), "--split", "val"])
    assert "instances_val.json: 2 images" in capsys.readouterr().out
    again, report = coco.load(*coco.find(root, "val"))
    # All crowds are groups, although every mask of a crowd is an RLE.
    assert report.warnings == []
    assert again.categories == dataset.categories
    for before, after in zip(dataset.records, again.records, strict=True):
        for field in dataclasses.fields(before):
            np.testing.assert_equal(getattr(after, field.name), getattr(before, field.name))
    written = json.loads((root / "annotations" / "instances_val.json").read_text())
    assert written == cityscapes.to_coco(dataset)


@pytest.mark.parametrize(
    ("kind", "suffix", "message"),
    [
        ("leftImg8bit", "leftImg8bit", r"no leftImg8bit/val/aachen/aachen_000000_000019_leftImg8bit\.png: unpack left"),
        ("gtFine", "gtFine_instanceIds", r"no gtFine/val/aachen/.*_gtFine_instanceIds\.png: .*json2instanceImg"),
    ],
)
def test_missing_files(root, kind, suffix, message):
    (root / kind / "val" / A[0] / f"{A[1]}_{suffix}.png").unlink()
    with pytest.raises(UserError, match=message):
        cityscapes.load(root, "val")


def test_no_files(root, tmp_path):
    with pytest.raises(UserError, match=r"no leftImg8bit/train/CITY/\*_leftImg8bit\.png: unpack leftImg8bit_train"):
        cityscapes.load(root, "train")


class TestBadAnnotations:
    @pytest.fixture
    def path(self, root):
        return root / "gtFine" / "val" / A[0] / f"{A[1]}_gtFine_instanceIds.png"

    def test_cut_short(self, root, path):
        path.write_bytes(path.read_bytes()[:-80])
        with pytest.raises(UserError, match=r"aachen_000000_000019_gtFine_instanceIds\.png: .*damaged or cut short"):
            cityscapes.load(root, "val")

    def test_colours(self, root, path):
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
        with pytest.raises(UserError, match=r"_instanceIds\.png: not an image of instance ids"):
            cityscapes.load(root, "val")

    @pytest.mark.parametrize("id_", [255, 13000, 34000])
    def test_training_ids(self, root, path, id_):
        Image.fromarray(np.full((HEIGHT, WIDTH), id_, np.uint16)).save(path)
        with pytest.raises(UserError, match=rf"_instanceIds\.png: {id_} is no instance id of Cityscapes"):
            cityscapes.load(root, "val")
