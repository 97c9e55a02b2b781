"""Boxes and crowd flags as exporters write them."""

import numpy as np
import pytest
from coco_json import HEIGHT, SQUARE, WIDTH, annotation, read, sound, with_annotation, write_images

from mrcnn_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path)


class TestBoxes:
    @pytest.mark.parametrize(
        ("bbox", "finding"),
        [
            ([5, 5, 0, 10], "without area"),
            ([5, 5, -3, 10], "without area"),
            ([50, 5, 10, 10], "outside the image"),
            ([-20, 5, 10, 10], "outside the image"),
        ],
    )
    def test_empty_and_outside_are_dropped(self, folder, bbox, finding):
        record, report = with_annotation(folder, bbox=bbox)
        assert record is None
        assert f"box {finding}, dropped: 1 (annotation 1)" in report.warnings[0]

    def test_reaching_outside_is_clipped(self, folder):
        record, report = with_annotation(folder, bbox=[-5, 20, 20, 20])
        np.testing.assert_array_equal(record.boxes, np.array([[0, 20, 15, 30]], np.float32))
        assert "clipped: 1 (annotation 1)" in report.warnings[0]

    @pytest.mark.parametrize("bbox", ["absent", None, [], [1, 2, 3], [5, 5, float("nan"), 10], "box"])
    def test_absent_is_taken_from_the_mask(self, folder, bbox):
        record, report = with_annotation(folder, bbox=bbox)
        np.testing.assert_array_equal(record.boxes, np.array([[5, 5, 15, 15]], np.float32))
        assert "taken from the mask: 1" in report.notes[0]

    def test_neither_box_nor_mask(self, folder):
        record, report = with_annotation(folder, bbox=None, segmentation=None)
        assert record is None
        assert "no mask, dropped: 1 (annotation 1)" in report.warnings[0]

    def test_numbers_as_text(self, folder):
        record, report = with_annotation(folder, bbox=["5", "5", "10.0", "10"], segmentation=[[str(v) for v in SQUARE]])
        np.testing.assert_array_equal(record.boxes, np.array([[5, 5, 15, 15]], np.float32))
        assert record.segmentations[0] == [[float(v) for v in SQUARE]]
        assert "written as text" in report.warnings[0]

    def test_shares_of_the_image(self, folder):
        content = sound()
        for a in content["annotations"]:
            a.update(bbox=[0.25, 0.5, 0.5, 0.5], segmentation=[[0, 0, 0.5, 0, 0.5, 1]], area=0)
        dataset, report = read(folder, content)
        np.testing.assert_array_equal(dataset.records[0].boxes, np.array([[10, 15, 30, 30]], np.float32))
        assert dataset.records[1].segmentations[0] == [[0.0, 0.0, 20.0, 0.0, 20.0, 30.0]]
        assert "scaled to pixels" in report.warnings[0]

    def test_corners_instead_of_sizes_are_refused(self, folder):
        content = sound()
        for a in content["annotations"]:
            a["bbox"] = [25, 20, 38, 29]
        with pytest.raises(UserError, match="only as x1, y1, x2, y2"):
            read(folder, content)

    @pytest.mark.parametrize("area", ["absent", None, 0, -4, float("nan")])
    def test_area(self, folder, area):
        record, _ = with_annotation(folder, area=area, segmentation=[[5, 5, 15, 5, 15, 15]])
        assert record.areas.tolist() == [50]
        record, _ = with_annotation(folder, area=area, segmentation=[])
        assert record.areas.tolist() == [100]

    def test_rotation_is_told(self, folder):
        _, report = with_annotation(folder, attributes={"rotation": 30.5})
        assert "rotated box" in report.warnings[0]


class TestCrowds:
    def crowds(self, folder, crowds, others, **changes):
        mask = {"size": [HEIGHT, WIDTH], "counts": [155, 300, HEIGHT * WIDTH - 455]}
        content = sound()
        content["annotations"] = [annotation(i + 1, iscrowd=1, segmentation=mask, **changes) for i in range(crowds)]
        content["annotations"] += [annotation(500 + i, category_id=7) for i in range(others)]
        dataset, report = read(folder, content)
        return int(dataset.records[0].crowd.sum()), report

    @pytest.mark.parametrize(
        ("crowds", "others", "left"), [(1, 3, 1), (3, 0, 0), (10, 10, 10), (11, 50, 0), (11, 200, 0), (5, 900, 5)]
    )
    def test_brushed_masks_are_objects(self, folder, crowds, others, left):
        found, report = self.crowds(folder, crowds, others)
        assert found == left
        assert any("READ AS SINGLE OBJECTS" in line for line in report.warnings) == (left == 0)

    def test_ignore_stays_a_crowd(self, folder):
        assert self.crowds(folder, 30, 3, ignore=1)[0] == 30

    def test_crowd_without_a_mask_stays_one(self, folder):
        record, report = with_annotation(folder, iscrowd=True, segmentation=[])
        assert record.crowd.tolist() == [True]
        assert report.warnings == []
