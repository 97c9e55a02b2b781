"""The host-side data set, and its way back to COCO."""

import contextlib
import io
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from mrcnn_jax.data.dataset import Category, Dataset, Record
from mrcnn_jax.errors import UserError

CATEGORIES = (
    Category(18, "dog"),
    Category(1, "person", ("left_eye", "right_eye"), (1, 0), ((0, 1),)),
)


def record(image_id=7, ids=(11, 12), source=None, **changes):
    mask = np.zeros((40, 60), np.uint8)
    mask[5:15, 30:50] = 1
    fields = {
        "image_id": image_id,
        "source": np.zeros((40, 60, 3), np.uint8) if source is None else source,
        "height": 40,
        "width": 60,
        "boxes": np.array([[10.12, 5.07, 20.45, 25.99], [30, 5, 50, 15]], np.float32),
        "classes": np.array([2, 1], np.int32),
        "crowd": np.array([False, True]),
        "areas": np.array([150.25, 200], np.float32),
        "segmentations": ([[10.12, 5.07, 20.45, 5.07, 20.45, 25.99]], rle.encode(np.asfortranarray(mask))),
        "keypoints": np.array([[[12.5, 7, 2], [15, 8.25, 1]], [[0, 0, 0], [0, 0, 0]]], np.float32),
        "annotation_ids": None if ids is None else np.array(ids),
        "file_name": f"{image_id}.jpg",
    }
    return Record(**{**fields, **changes})


def load_with_pycocotools(content):
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def test_classes():
    dataset = Dataset(CATEGORIES, [record()])
    assert dataset.classes == ("dog", "person")
    assert dataset.num_classes == 2


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_to_coco_is_what_pycocotools_reads():
    coco = load_with_pycocotools(Dataset(CATEGORIES, [record()], "pets").to_coco())
    person, dog = coco.loadAnns([11, 12])
    assert (person["category_id"], dog["category_id"]) == (1, 18)
    # Two decimals come back from float32 exactly, and not 10.119999885559082.
    assert person["bbox"] == [10.12, 5.07, 10.33, 20.92]
    assert person["area"] == 150.25
    assert person["keypoints"] == [12.5, 7.0, 2.0, 15.0, 8.25, 1.0]
    assert person["num_keypoints"] == 2
    assert "keypoints" not in dog
    assert (person["iscrowd"], dog["iscrowd"]) == (0, 1)
    assert isinstance(dog["segmentation"]["counts"], str)
    assert coco.annToMask(dog).sum() == 200
    assert coco.loadCats([1])[0]["skeleton"] == [[1, 2]]
    assert coco.loadImgs([7])[0] == {"id": 7, "file_name": "7.jpg", "height": 40, "width": 60}


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([(11, 12), (12, 13)], id="repeated"),
        pytest.param([(0, 1), (2, 3)], id="from zero"),
        pytest.param([(5, 6), None], id="absent"),
    ],
)
def test_ids_that_would_spoil_matching_are_numbered_anew(ids):
    content = Dataset(CATEGORIES, [record(i, own) for i, own in enumerate(ids)]).to_coco()
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3, 4]


def test_box_only_and_empty():
    box_only = record(segmentations=(None, None), keypoints=None)
    empty = record(8, (), boxes=np.zeros((0, 4), np.float32), segmentations=())
    content = Dataset(CATEGORIES, [box_only, empty]).to_coco()
    assert [image["id"] for image in content["images"]] == [7, 8]
    assert len(content["annotations"]) == 2
    assert not any("segmentation" in annotation for annotation in content["annotations"])


def test_difficult_objects_are_told_and_can_be_left_out():
    hard = record(difficult=np.array([True, False]))
    dataset = Dataset(CATEGORIES, [hard, record(8, (13, 14)), record(9, (15, 16), difficult=np.array([True, True]))])
    assert [a.get("difficult") for a in dataset.to_coco()["annotations"]] == [1, None, None, None, 1, 1]
    kept = pickle.loads(pickle.dumps(dataset.without_difficult()))
    assert [len(one.boxes) for one in kept.records] == [1, 2, 0]
    assert kept.to_coco()["annotations"] == [a for a in dataset.to_coco()["annotations"] if "difficult" not in a]
    first = kept.records[0]
    np.testing.assert_array_equal(first.boxes, hard.boxes[1:])
    np.testing.assert_array_equal(first.keypoints, hard.keypoints[1:])
    assert (first.classes, first.crowd, first.areas, first.annotation_ids) == (1, True, 200, 12)
    assert first.segmentations == hard.segmentations[1:]


def test_subset_keeps_order_and_pickles():
    dataset = Dataset(CATEGORIES, [record(i) for i in range(5)]).subset(np.array([4, 1]))
    assert [r.image_id for r in pickle.loads(pickle.dumps(dataset)).records] == [4, 1]
    assert [r.image_id for r in dataset.subset([1]).records] == [1]


def stored_on_its_side():
    """A file of 60 x 40 that its EXIF tag turns to 40 x 60."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(np.arange(40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)).save(file, "PNG", exif=exif)
    return file.getvalue()


def test_image_is_turned_unless_annotated_as_stored():
    source = stored_on_its_side()
    assert record(source=source, height=60, width=40).image().shape == (60, 40, 3)
    assert record(source=source, height=40, width=60).image().shape == (40, 60, 3)


def test_image_of_another_size_is_an_error_with_names():
    with pytest.raises(UserError, match=r"image id 7: 7\.jpg: the file is 40 x 60 .* say 60 x 41"):
        record(source=stored_on_its_side(), height=41).image()


def test_missing_image_names_id_and_file(tmp_path):
    with pytest.raises(UserError, match=r"image id 7: .*gone\.jpg"):
        record(source=tmp_path / "gone.jpg").image()
