"""From padded detections to results in pixels of the original image."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.paste import paste
from mrcnn_jax.evaluation.results import coco_results, rescale, to_image, write_json
from mrcnn_jax.types import Detections

# From inside pycocotools' decode, under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

# The model saw 50 x 80 pixels of an image of 100 x 200.
SIZE, ORIGINAL = (50, 80), (100, 200)


def detections(fill=0.0):
    """Three detections, of which the last is beyond the right border, and two rows of padding."""
    boxes = np.full((5, 4), fill, np.float32)
    boxes[:3] = [[10, 5, 30, 25], [-4, 20, 60, 70], [90, 10, 95, 20]]
    masks = np.full((5, 8, 8), fill, np.float32)
    masks[:3] = np.random.default_rng(0).random((3, 8, 8))
    keypoints = np.full((5, 2, 3), fill, np.float32)
    keypoints[:3] = [[[20, 10, 0.9], [8, 4, 0.1]]] * 3
    return Detections(
        boxes=boxes,
        scores=np.array([0.9, 0.8, 0.7, fill, fill], np.float32),
        classes=np.array([2, 1, 1, 0, 3], np.int32),
        valid=np.array([True, True, True, False, False]),
        masks=masks,
        keypoints=keypoints,
    )


def test_boxes_are_scaled_clipped_and_emptied():
    found = rescale(detections(), SIZE, ORIGINAL)
    np.testing.assert_allclose(found.boxes, [[25, 10, 75, 50], [0, 40, 150, 100]])
    np.testing.assert_allclose(found.scores, [0.9, 0.8])
    np.testing.assert_array_equal(found.classes, [2, 1])
    np.testing.assert_allclose(found.keypoints[0], [[50, 20, 0.9], [20, 8, 0.1]])


def test_torchvision_neither_clips_nor_drops():
    found = rescale(detections(), SIZE, ORIGINAL, "torchvision")
    np.testing.assert_allclose(found.boxes, [[25, 10, 75, 50], [-10, 40, 150, 140], [225, 20, 237.5, 40]])


@pytest.mark.parametrize("fill", [7.0, 1e6, np.nan])
def test_padding_changes_nothing(fill):
    a, b = to_image(detections(), SIZE, ORIGINAL), to_image(detections(fill), SIZE, ORIGINAL)
    for name in ("boxes", "scores", "classes", "masks", "keypoints"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_masks_become_pixels():
    found = to_image(detections(), SIZE, ORIGINAL)
    assert found.masks.shape == (2, 100, 200)
    assert found.masks.dtype == bool
    window, (y, x) = paste(detections().masks[0], found.boxes[0], *ORIGINAL)
    np.testing.assert_array_equal(found.masks[0][y : y + window.shape[0], x : x + window.shape[1]], window)
    assert found.masks[0].sum() == window.sum() > 0
    assert to_image(detections().replace(masks=None), SIZE, ORIGINAL, paste_rule=None).masks is None


@pytest.mark.parametrize("rule", ["detectron2", "torchvision"])
def test_coco_results(rule):
    found = rescale(detections(), SIZE, ORIGINAL, rule)
    results = coco_results(found, 42, ORIGINAL, [11, 90, 5], paste_rule=rule)
    assert json.loads(json.dumps(results)) == results
    assert [r["image_id"] for r in results] == [42] * len(found.boxes)
    assert [r["category_id"] for r in results] == [90, 11, 11][: len(results)]
    assert results[0]["bbox"] == pytest.approx([25, 10, 50, 40])
    # torchvision's numbers are COCO's already.
    shift = 0.5 if rule == "torchvision" else 0.0
    expected = np.array([49.5, 19.5, 0.9, 19.5, 7.5, 0.1]) + shift * np.array([1, 1, 0, 1, 1, 0])
    assert results[0]["keypoints"] == pytest.approx(expected)
    pixels = to_image(detections(), SIZE, ORIGINAL, paste_rule=rule).masks
    for result, mask in zip(results, pixels, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(result["segmentation"]), mask)


def test_no_detections():
    nothing = detections().replace(valid=np.zeros(5, bool))
    assert coco_results(rescale(nothing, SIZE, ORIGINAL), 1, ORIGINAL, [1]) == []
    assert to_image(nothing, SIZE, ORIGINAL).masks.shape == (0, 100, 200)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_json([1, 2], path)
    with pytest.raises(TypeError):
        write_json([object()], path)
    assert json.loads(path.read_text()) == [1, 2]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_json([3], tmp_path / "file" / "results.json")
    write_json([3], path)
    assert json.loads(path.read_text()) == [3]
    assert os.listdir(path.parent) == ["results.json"]


def test_workers_import_little():
    """A spawned worker imports this module: without JAX it starts in a fraction of a second."""
    code = "import sys, mrcnn_jax.evaluation.results; print([m for m in ('jax', 'flax', 'cv2') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
