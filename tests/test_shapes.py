"""The drawn data set: exact labels, bits that never change, and the knobs of its difficulty."""

import hashlib
import json
import pickle

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from mrcnn_jax.data import drawing, shapes
from mrcnn_jax.errors import UserError

# Raised inside pycocotools when it decodes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def records():
    return list(shapes.load("train", 120, seed=7, crowd_rate=0.2).records)


def masks_of(record):
    return [rle.decode(s).astype(bool) for s in record.segmentations]


def test_boxes_areas_and_masks_agree(records):
    for record in records:
        assert record.image().shape == (record.height, record.width, 3)
        assert record.image().dtype == np.uint8
        total = np.zeros((record.height, record.width), int)
        for box, area, mask in zip(record.boxes, record.areas, masks_of(record), strict=True):
            y, x = np.nonzero(mask)
            np.testing.assert_array_equal(box, [x.min(), y.min(), x.max() + 1, y.max() + 1])
            assert area == mask.sum() >= 0.002 * mask.size
            total += mask
        # Visible masks never share a pixel.
        assert total.max(initial=0) <= 1


def test_dtypes_are_those_of_a_record(records):
    for record in records:
        n = len(record.boxes)
        assert record.boxes.dtype == np.float32
        assert record.boxes.shape == (n, 4)
        assert record.classes.dtype == np.int32
        assert record.crowd.dtype == bool
        assert record.areas.dtype == np.float32
        assert record.keypoints.dtype == np.float32
        assert record.keypoints.shape == (n, 4, 3)
        assert record.annotation_ids.dtype == np.int64
        assert all(isinstance(s["counts"], bytes) for s in record.segmentations)


def test_ids_are_unique(records):
    ids = np.concatenate([r.annotation_ids for r in records])
    assert len(np.unique(ids)) == len(ids)
    assert ids.min() > 0
    assert [r.image_id for r in records] == list(range(1, 121))


def test_the_set_has_every_class_occlusion_empties_and_crowds(records):
    classes = np.concatenate([r.classes[~r.crowd] for r in records])
    assert np.bincount(classes, minlength=9)[1:].min() > 20
    visibility = np.concatenate([r.keypoints[~r.crowd][..., 2].ravel() for r in records])
    assert {0.0, 1.0, 2.0} == set(visibility.tolist())
    assert 10 < sum(r.crowd.any() for r in records) < 40
    extents = np.concatenate([(r.boxes[:, 2:] - r.boxes[:, :2]).max(1) for r in records])
    assert extents.min() < 14
    assert extents.max() > 70


def test_keypoints_are_the_outermost_points_of_an_unhidden_shape():
    records = shapes.load("train", 60, max_objects=1, crowd_rate=0.0, empty_rate=0.0).records
    checked = 0
    for record in records:
        if len(record.boxes) == 0 or not (record.keypoints[..., 2] == 2).all():
            continue
        [(x1, y1, x2, y2)], [points], [mask] = record.boxes, record.keypoints, masks_of(record)
        assert points[0, 1] == y1
        assert points[1, 0] == x2 - 1
        assert points[2, 1] == y2 - 1
        assert points[3, 0] == x1
        assert all(mask[int(y), int(x)] for x, y, _ in points)
        checked += 1
    assert checked > 30


def test_visibility_follows_the_mask(records):
    for record in records:
        for mask, points, crowd in zip(masks_of(record), record.keypoints, record.crowd, strict=True):
            assert not crowd or (points == 0).all()
            for x, y, v in points:
                if v > 0:
                    assert mask[int(y), int(x)] == (v == 2)
                else:
                    assert (x, y) == (0, 0)


@pytest.mark.parametrize("name", list(drawing.SHAPES))
def test_mask_is_the_centre_rule_at_every_subpixel_offset(name):
    """The mask of a shape equals that of the same shape drawn nine times larger, read at the pixel centres."""
    stamp = drawing.stamp(name, 20.3, 17.6, 11.0, 0.8, 33)
    scale = 9  # Odd, so that a fine pixel's centre lies on each coarse one's.
    fine = drawing.stamp(name, 20.3 * scale, 17.6 * scale, 11.0 * scale, 0.8, 33)
    rows, columns = np.nonzero(stamp.inside)
    y = (rows + stamp.top) * scale + scale // 2 - fine.top
    x = (columns + stamp.left) * scale + scale // 2 - fine.left
    assert fine.inside[y, x].all()
    assert abs(fine.inside.sum() / scale**2 - stamp.inside.sum()) < 0.05 * stamp.inside.sum()
    # The window holds the whole shape with its soft edge.
    border = np.concatenate([stamp.opacity[0], stamp.opacity[-1], stamp.opacity[:, 0], stamp.opacity[:, -1]])
    assert (border == 0).all()


@pytest.mark.parametrize(
    ("name", "area", "holes"),
    # Areas of unit shapes from their geometry.
    [
        ("circle", np.pi, 0),
        ("square", 2.56, 0),
        ("triangle", 3 * np.sqrt(3) / 4, 0),
        ("star", 1.1226, 0),
        ("cross", 4 * 0.64 - 0.64**2, 0),
        ("ring", np.pi * 0.75, 1),
        ("heart", 1.1**2 + np.pi * 0.55**2, 0),
    ],
)
def test_shapes_have_their_area_and_holes(name, area, holes):
    stamp = drawing.stamp(name, 0.0, 0.0, 60.0, 1.0, 20)
    assert stamp.inside.sum() / 60**2 == pytest.approx(area, rel=0.01)
    labels = cv2.connectedComponents((~stamp.inside).astype(np.uint8))[0]
    assert labels - 2 == holes


def test_stamp_opacity_is_half_on_the_outline():
    stamp = drawing.stamp("circle", 30.0, 30.0, 20.0, 1.0, 0)
    column = 30 - stamp.left
    row = 10 - stamp.top
    # Pixel centres at y = 9.5 and 10.5 lie half a pixel outside and inside.
    assert stamp.opacity[row - 1, column] == pytest.approx(0, abs=0.02)
    assert stamp.opacity[row, column] == pytest.approx(1, abs=0.02)


def test_a_record_depends_on_seed_split_and_index_alone():
    small, large = shapes.load("train", 4, seed=3), shapes.load("train", 400, seed=3)
    for i in (3, 0, 2):
        assert small.records[i].image().tobytes() == large.records[i].image().tobytes()
    np.testing.assert_array_equal(small.records[-1].boxes, small.records[3].boxes)
    assert small.records[0].image().tobytes() != shapes.load("val", 4, seed=3).records[0].image().tobytes()
    assert small.records[0].image().tobytes() != shapes.load("train", 4, seed=4).records[0].image().tobytes()
    with pytest.raises(IndexError):
        small.records[4]
    assert len(list(small.records)) == 4


def test_the_bits_are_those_of_every_other_machine():
    digest = hashlib.sha256()
    for record in shapes.load("val", 20).records:
        digest.update(record.image().tobytes() + record.boxes.tobytes() + record.keypoints.tobytes())
        digest.update(b"".join(s["counts"] for s in record.segmentations))
    assert digest.hexdigest() == "c077ebea59f21639138e44fe78f377f03ad3e12fbdeeb082a2c2fa736d1105f1"


def test_records_pickle_to_workers():
    dataset = pickle.loads(pickle.dumps(shapes.load("train", 3)))
    assert dataset.records[1].image().tobytes() == shapes.load("train", 3).records[1].image().tobytes()


def test_sizes_are_drawn_from_their_range():
    records = shapes.load("train", 30, size=(48, 64), max_size=(80, 64)).records
    heights = {r.height for r in records}
    assert min(heights) >= 48
    assert max(heights) <= 80
    assert len(heights) > 5
    assert {r.width for r in records} == {64}
    assert all(r.image().shape == (r.height, r.width, 3) for r in records)


def test_rates():
    assert all(len(r.boxes) == 0 for r in shapes.load("train", 5, empty_rate=1.0).records)
    records = list(shapes.load("train", 10, empty_rate=0.0, crowd_rate=1.0, max_objects=1, scale=(0.1, 0.1)).records)
    assert all(r.crowd.sum() == 1 for r in records)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("split", "test"),
        ("num_images", -1),
        ("size", (4, 4)),
        ("max_size", (8, 8)),
        ("scale", (0.5, 0.1)),
        ("noise", 200),
        ("crowd_rate", 1.5),
        ("num_classes", 9),
    ],
)
def test_bad_arguments_are_named(name, value):
    arguments = {"split": "train", "num_images": 3, name: value}
    with pytest.raises(UserError, match=name):
        shapes.load(**arguments)


def test_write_coco(tmp_path):
    dataset = shapes.load("val", 6, crowd_rate=0.5)
    shapes.write_coco(dataset, tmp_path, "val")
    coco = json.loads((tmp_path / "annotations/instances_val.json").read_text())
    assert [c["name"] for c in coco["categories"]] == list(dataset.classes)
    assert len(coco["annotations"]) == sum(len(r.boxes) for r in dataset.records)
    assert {"segmentation", "area", "bbox", "iscrowd", "keypoints"} <= set(coco["annotations"][0])
    for image, record in zip(coco["images"], dataset.records, strict=True):
        pixels = cv2.imread(str(tmp_path / "val" / image["file_name"]))[..., ::-1]
        np.testing.assert_array_equal(pixels, record.image())
        found = [a for a in coco["annotations"] if a["image_id"] == record.image_id]
        np.testing.assert_array_equal([rle.decode(a["segmentation"]) for a in found], masks_of(record))


def test_fewer_classes_are_the_first_ones():
    dataset = shapes.load("train", 60, num_classes=3)
    assert dataset.categories == shapes.CATEGORIES[:3]
    assert {label for record in dataset.records for label in record.classes.tolist()} == {1, 2, 3}
