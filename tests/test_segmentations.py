"""Masks in every form that exporters write: polygons, RLE and neither."""

import numpy as np
import pytest
from coco_json import HEIGHT, SQUARE, WIDTH, with_annotation, write_images
from pycocotools import mask as rle

from mrcnn_jax.data import segmentations
from mrcnn_jax.data.report import Report
from mrcnn_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path)


class TestSegmentations:
    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(SQUARE, id="flat"),
            pytest.param([[SQUARE]], id="too deep"),
            pytest.param([[5, 5], [15, 5], [15, 15], [5, 15]], id="points"),
            pytest.param([[[5, 5], [15, 5], [15, 15], [5, 15]]], id="points of a part"),
            pytest.param([[5, 5, 15, 15]], id="two corners"),
            pytest.param([SQUARE, [1, 2, 3, 4, 5]], id="one bad part"),
        ],
    )
    def test_polygons(self, folder, value):
        record, _ = with_annotation(folder, segmentation=value)
        assert record.segmentations[0] == [[float(v) for v in SQUARE]]

    def test_a_bow_tie_has_no_signed_area_and_is_kept(self, folder):
        ring = [0, 0, 10, 10, 10, 0, 0, 10]
        record, report = with_annotation(folder, segmentation=[ring])
        assert record.segmentations[0] == [[float(v) for v in ring]]
        assert not report.warnings

    @pytest.mark.parametrize(
        ("ring", "finding"),
        [
            ([1, 2], "fewer than three points"),
            ([1, 2, 3, 4, 5, 6, 7], "odd number"),
            ([5, 5, 15, 15, 10, 10], "without area"),
            ([5, 5, 1e9, 5, 15, 15], "far outside"),
            ([5, 5, float("nan"), 5, 15, 15], "not finite"),
            ([5, 5, 10**400, 5, 15, 15], "far outside"),
            (["a", 1000000000000, 1, 2, 3, 4], "not made of numbers"),
            ([None] * 6, "not made of numbers"),
        ],
    )
    def test_bad_parts_are_dropped(self, folder, ring, finding):
        record, report = with_annotation(folder, segmentation=[ring])
        assert record.segmentations == (None,)
        assert finding in report.warnings[0]
        assert "annotation 1" in report.warnings[0]
        assert "only the box is used" in report.warnings[1]

    @pytest.mark.parametrize("value", ["absent", None, [], {}, "", 3])
    def test_box_only(self, folder, value):
        record, report = with_annotation(folder, segmentation=value)
        assert record.segmentations == (None,)
        assert any("left out of the mask loss: 1" in line for line in report.warnings)

    @pytest.mark.parametrize("coding", ["list", "text", "bytes"])
    def test_rle(self, coding):
        mask = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH)).astype(np.uint8)
        packed = rle.encode(np.asfortranarray(mask))
        counts = {
            "list": segmentations.runs(packed["counts"]).tolist(),
            "text": packed["counts"].decode(),
            "bytes": packed["counts"],
        }[coding]
        report = Report()
        found = segmentations.canonical({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH, report, 1)
        assert found == {"size": [HEIGHT, WIDTH], "counts": packed["counts"]}
        assert report.lines() == []

    def test_runs_are_pycocotools_runs(self):
        rng = np.random.default_rng(0)
        for density in (0.001, 0.02, 0.5, 0.98):
            mask = rng.random((97, 211)) < density
            flat = np.concatenate([[False], mask.reshape(-1, order="F"), [False]])
            edges = np.flatnonzero(np.diff(flat.astype(np.int8)))
            expected = np.diff(np.concatenate([[0], edges, [mask.size]]))
            packed = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            found = segmentations.runs(packed["counts"])
            np.testing.assert_array_equal(found, expected[: len(found)])
            assert found.sum() == mask.size
            np.testing.assert_array_equal(segmentations.decode(packed), mask)

    @pytest.mark.parametrize(
        ("changes", "finding"),
        [
            ({"size": [WIDTH, HEIGHT]}, "size is not"),
            ({"size": None}, "size is not"),
            ({"counts": [10, 20]}, "do not fill"),
            ({"counts": [10, -20, HEIGHT * WIDTH + 10]}, "do not fill"),
            ({"counts": [0, 10**30]}, "do not fill"),
            ({"counts": ["1", "2"]}, "do not fill"),
            ({"counts": "zzzz"}, "do not fill"),
            ({"counts": "\u00e9\n"}, "do not fill"),
            ({"counts": "o" * 50 + "0"}, "do not fill"),
            ({"counts": ""}, "do not fill"),
            ({"counts": None}, "do not fill"),
        ],
    )
    def test_rle_that_does_not_fit_is_refused(self, folder, changes, finding):
        value = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH], **changes}
        with pytest.raises(UserError, match=rf"{finding}.*annotation 1"):
            with_annotation(folder, segmentation=value)

    def test_rle_without_a_pixel(self, folder):
        record, report = with_annotation(folder, segmentation={"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]})
        assert record.segmentations == (None,)
        assert "without a pixel" in report.warnings[0]
