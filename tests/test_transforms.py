"""Resizing against the reference libraries, and every transform against a picture drawn before and after it."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from mrcnn_jax.data import transforms
from mrcnn_jax.data.dataset import Category, Record
from mrcnn_jax.data.transforms import Example
from mrcnn_jax.errors import UserError

# pycocotools' compiled part does not know NumPy 2's `copy` argument.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

GOLDEN = np.load(Path(__file__).parent / "golden" / "transforms.npz")
TRIANGLE = [20.0, 10.0, 60.0, 34.0, 24.0, 50.0]
SQUARE = [70.0, 40.0, 92.0, 40.0, 92.0, 62.0, 70.0, 62.0]


def filled(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    return rle.decode(rle.merge(rle.frPyObjects(polygons, height, width))).astype(bool)


def picture(height: int = 80, width: int = 100) -> Example:
    """Red: a triangle given as a polygon. Green: a square given as RLE."""
    image = np.zeros((height, width, 3), np.uint8)
    masks = [filled([TRIANGLE], height, width), filled([SQUARE], height, width)]
    for channel, mask in enumerate(masks):
        image[mask, channel] = 255
    return Example(
        image=image,
        boxes=np.array([[20, 10, 60, 50], [70, 40, 92, 62]], np.float32),
        classes=np.array([1, 2], np.int32),
        crowd=np.zeros(2, bool),
        segmentations=([TRIANGLE], rle.encode(np.asfortranarray(masks[1].astype(np.uint8)))),
        source_size=(height, width),
        keypoints=np.array([[[20, 10, 2], [60, 34, 1]], [[70, 40, 2], [92, 62, 2]]], np.float32),
        keypoint_flips=np.array([[0, 1], [1, 0]]),
    )


def assert_annotations_match_image(example: Example, tolerance: float) -> None:
    """Each object's colour must lie where its box and its mask say that it lies."""
    for row in range(len(example.boxes)):
        colour = example.image[..., int(example.classes[row]) - 1] >= 128
        ys, xs = np.nonzero(colour)
        extent = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(example.boxes[row], extent, atol=tolerance)
        # The picture, sampled inside the box as the mask is.
        x1, y1, x2, y2 = example.boxes[row]
        steps = (np.arange(56) + 0.5) / 56
        ys = np.clip((y1 + steps * (y2 - y1)).astype(int), 0, colour.shape[0] - 1)
        xs = np.clip((x1 + steps * (x2 - x1)).astype(int), 0, colour.shape[1] - 1)
        agreement = (colour[ys][:, xs] == transforms.object_mask(example, row, 56)).mean()
        assert agreement > 0.97, (row, agreement)


@pytest.mark.parametrize(
    ("size", "limits", "rounded", "floored"),
    [
        ((480, 640), (800, 1333), (800, 1067), (800, 1066)),
        ((640, 427), (800, 1333), (1199, 800), (1199, 800)),
        ((300, 1000), (800, 1333), (400, 1333), (399, 1333)),
        ((37, 53), (60, 100), (60, 86), (60, 85)),
        ((1, 5000), (800, 1333), (1, 1333), (1, 1333)),
    ],
)
def test_resized_shape_as_in_both_libraries(size, limits, rounded, floored):
    assert transforms.resized_shape(*size, *limits, "round") == rounded
    assert transforms.resized_shape(*size, *limits, "floor") == floored


def test_fit_shape_keeps_the_proportions():
    assert transforms.fit_shape((800, 1067), (800, 1344)) == (800, 1067)
    assert transforms.fit_shape((800, 1067), (400, 400)) == (300, 400)
    assert transforms.fit_shape((1, 4000), (64, 64)) == (1, 64)


@pytest.mark.parametrize("index", [0, 2])
def test_resize_float_gives_torchvision_pixels_and_boxes(index):
    # Image 2 is kept with its first channel alone.
    image = np.broadcast_to(GOLDEN[f"tv.image.{index}"], (3, *GOLDEN[f"tv.image.{index}"].shape[1:])).transpose(1, 2, 0)
    expected = GOLDEN[f"tv.resized.{index}"].transpose(1, 2, 0)
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    shape = transforms.resized_shape(*image.shape[:2], 60, 100, "floor")
    assert shape == expected.shape[:2]
    normalised = (transforms.resize_float(image, shape) - mean) / std
    np.testing.assert_allclose(normalised[..., : expected.shape[2]], expected, atol=2e-5)
    example = Example(
        image=np.zeros((*image.shape[:2], 3), np.uint8),
        boxes=GOLDEN[f"tv.boxes.{index}"],
        classes=np.ones(len(GOLDEN[f"tv.boxes.{index}"]), np.int32),
        crowd=np.zeros(len(GOLDEN[f"tv.boxes.{index}"]), bool),
        segmentations=(None,) * len(GOLDEN[f"tv.boxes.{index}"]),
        source_size=image.shape[:2],
    )
    boxes = transforms.resize_example(example, shape, "cv2").boxes
    np.testing.assert_allclose(boxes, GOLDEN[f"tv.resized_boxes.{index}"], rtol=1e-6)


def blots(height: int, width: int) -> np.ndarray:
    """A smooth random picture."""
    small = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def triangle_filter(old: int, new: int) -> np.ndarray:
    """Weights [new, old] of a bilinear filter that widens as it shrinks, which is what keeps Pillow free of aliases."""
    scale = max(old / new, 1.0)
    distance = (np.arange(old) + 0.5) - (np.arange(new)[:, None] + 0.5) * old / new
    weights = np.maximum(1 - np.abs(distance) / scale, 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(64, 307), (40, 100), (150, 500)])
def test_pil_resize_is_detectron2s(shape):
    image = blots(80, 360)
    resized = transforms.resize(image, shape, "pil")
    # Detectron2's own call, and what it computes.
    np.testing.assert_array_equal(resized, Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))
    exact = np.einsum(
        "yi,xj,ijc->yxc", triangle_filter(80, shape[0]), triangle_filter(360, shape[1]), image, optimize=True
    )
    np.testing.assert_allclose(resized, exact, atol=1.01)


def test_interpolations_agree_when_enlarging():
    image = blots(80, 360)
    exact = transforms.resize_float(image, (120, 500))
    for name in ("pil", "cv2", "torchvision"):
        assert np.abs(transforms.resize(image, (120, 500), name) - exact).max() < 1.5, name


def test_unknown_options_name_the_key():
    with pytest.raises(UserError, match="interpolation"):
        transforms.resize(np.zeros((4, 4, 3), np.uint8), (2, 2), "nearest")
    with pytest.raises(UserError, match="rounding"):
        transforms.resized_shape(4, 4, 2, 2, "up")


@pytest.mark.parametrize("flip_first", [True, False])
def test_resize_and_flip_move_everything_together(flip_first):
    example = picture()
    assert_annotations_match_image(example, tolerance=1)
    if flip_first:
        example = transforms.resize_example(transforms.flip_horizontal(example), (120, 210), "cv2")
    else:
        example = transforms.flip_horizontal(transforms.resize_example(example, (120, 210), "cv2"))
    assert example.image.shape == (120, 210, 3)
    assert_annotations_match_image(example, tolerance=2)
    # Scaled by 2.1 and 1.5; the square's two keypoints change places, the triangle's do not.
    expected = [[[210 - 42, 15, 2], [210 - 126, 51, 1]], [[210 - 193.2, 93, 2], [210 - 147, 60, 2]]]
    np.testing.assert_allclose(example.keypoints, expected, rtol=1e-6)


def test_flip_twice_changes_nothing():
    example = picture()
    twice = transforms.flip_horizontal(transforms.flip_horizontal(example))
    np.testing.assert_array_equal(twice.image, example.image)
    np.testing.assert_allclose(twice.boxes, example.boxes)
    np.testing.assert_allclose(twice.keypoints, example.keypoints)
    np.testing.assert_array_equal(transforms.object_mask(twice, 0, 112), transforms.object_mask(example, 0, 112))


def test_flip_without_an_order_leaves_keypoints_in_their_places():
    example = picture()
    flipped = transforms.flip_horizontal(replace(example, keypoint_flips=None))
    np.testing.assert_allclose(flipped.keypoints[..., 0], example.image.shape[1] - example.keypoints[..., 0])
    np.testing.assert_array_equal(flipped.keypoints[..., 1:], example.keypoints[..., 1:])


def test_flip_mirrors_the_mask_bit_for_bit():
    example = picture()
    flipped = transforms.flip_horizontal(example)
    for row in range(2):
        mask = transforms.object_mask(example, row, 112)
        np.testing.assert_array_equal(transforms.object_mask(flipped, row, 112), mask[:, ::-1])


def test_crop_shrinks_boxes_to_what_is_seen():
    example = transforms.resize_example(picture(), (160, 200), "cv2")
    cut = transforms.crop(example, top=30, left=60, height=90, width=110)
    assert cut.image.shape == (90, 110, 3)
    assert_annotations_match_image(cut, tolerance=2)
    # The triangle's top and left corners, and the square's far one, lie outside.
    np.testing.assert_array_equal(cut.keypoints[..., 2], [[0, 1], [2, 0]])


def test_crop_drops_what_is_gone_and_looks_at_the_outline():
    # The window holds a corner of the triangle's box that the triangle does not reach, and nothing of the square.
    gone = transforms.crop(picture(), top=0, left=50, height=20, width=20)
    assert (
        len(gone.boxes) == len(gone.classes) == len(gone.crowd) == len(gone.segmentations) == len(gone.keypoints) == 0
    )
    kept = transforms.crop(picture(), top=30, left=0, height=50, width=100)
    np.testing.assert_array_equal(kept.classes, [1, 2])


def test_crop_without_a_segmentation_cuts_the_box():
    example = Example(
        image=np.zeros((10, 10, 3), np.uint8),
        boxes=np.array([[1, 1, 9, 9]], np.float32),
        classes=np.array([1], np.int32),
        crowd=np.array([False]),
        segmentations=(None,),
        source_size=(10, 10),
    )
    np.testing.assert_array_equal(transforms.crop(example, 4, 5, 4, 3).boxes, [[0, 0, 3, 4]])


@pytest.mark.parametrize("seed", range(12))
def test_large_scale_jitter_keeps_picture_and_annotations_together(seed):
    rng = np.random.default_rng(seed)
    example = transforms.large_scale_jitter(picture(), rng, (96, 96), (0.5, 2.0), "cv2")
    if rng.random() < 0.5:
        example = transforms.flip_horizontal(example)
    assert max(example.image.shape[:2]) <= 96
    assert (example.boxes[:, :2] >= 0).all()
    assert (example.boxes[:, 2:] <= example.image.shape[1::-1]).all()
    # A sliver of a few pixels says nothing about the shape.
    sides = (example.boxes[:, 2:] - example.boxes[:, :2]).min(axis=1)
    large = np.flatnonzero(sides > 8).tolist()
    for row in large:
        colour = example.image[..., int(example.classes[row]) - 1] >= 128
        ys, xs = np.nonzero(colour)
        np.testing.assert_allclose(example.boxes[row], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=2)
        mask = transforms.object_mask(example, row, 56)
        x1, y1, x2, y2 = np.rint(example.boxes[row]).astype(int)
        window = cv2.resize(mask.astype(np.float32), (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA) >= 0.5
        assert (window == colour[y1:y2, x1:x2]).mean() > 0.93


def test_load_example_centres_keypoints_and_pads_them():
    record = Record(
        image_id=1,
        source=np.zeros((8, 8, 3), np.uint8),
        height=8,
        width=8,
        boxes=np.array([[0, 0, 4, 4], [1, 1, 5, 5]], np.float32),
        classes=np.array([2, 1], np.int32),
        crowd=np.zeros(2, bool),
        areas=np.array([16, 16], np.float32),
        segmentations=(None, None),
        keypoints=np.array([[[1, 2, 2], [3, 2, 1]], [[0, 0, 0], [0, 0, 0]]], np.float32),
    )
    categories = (Category(1, "plain"), Category(2, "pair", ("left", "right"), (1, 0)))
    example = transforms.load_example(record, categories, num_keypoints=3)
    np.testing.assert_array_equal(example.keypoints[0], [[1.5, 2.5, 2], [3.5, 2.5, 1], [0.5, 0.5, 0]])
    np.testing.assert_array_equal(example.keypoint_flips, [[1, 0, 2], [0, 1, 2]])
    # Pixel 1 of 8 becomes pixel 6, whose middle is 6.5; what was left is now right.
    flipped = transforms.flip_horizontal(example)
    np.testing.assert_array_equal(flipped.keypoints[0, :2], [[4.5, 2.5, 1], [6.5, 2.5, 2]])
    assert transforms.load_example(record).keypoints is None
    indices = transforms.load_example(record, categories, num_keypoints=3, half_pixel=False)
    np.testing.assert_array_equal(indices.keypoints[0], [[1, 2, 2], [3, 2, 1], [0, 0, 0]])
