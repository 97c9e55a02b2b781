"""Selective search: boxes of what stands out, the same bits every time, for images of every kind."""

import numpy as np
import pytest

from mrcnn_jax.data.dataset import Record
from mrcnn_jax.data.selective_search import propose, propose_all
from mrcnn_jax.errors import UserError

SQUARE, BAR = (40, 30, 120, 110), (160, 20, 200, 140)


def picture(height: int = 150, width: int = 250) -> np.ndarray:
    """Two plain objects on a plain ground, with a little noise."""
    image = np.full((height, width, 3), (60, 110, 160), np.uint8)
    for (x1, y1, x2, y2), colour in ((SQUARE, (220, 40, 40)), (BAR, (30, 200, 60))):
        image[y1:y2, x1:x2] = colour
    return image + np.random.default_rng(0).integers(0, 8, image.shape).astype(np.uint8)


def nearest(boxes: np.ndarray, box: tuple[int, ...]) -> float:
    """How far the sides of the most similar box are from those of `box`, in pixels."""
    return float(np.abs(boxes - np.array(box)).max(axis=1).min())


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_objects_and_the_whole_image_are_among_the_boxes(mode):
    boxes = propose(picture(), mode)
    assert boxes.dtype == np.float32
    for box in (SQUARE, BAR, (0, 0, 250, 150)):
        assert nearest(boxes, box) <= 2
    assert (boxes >= 0).all()
    assert (boxes <= [250, 150, 250, 150]).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)


def test_boxes_are_in_pixels_of_the_image_and_small_ones_left_out():
    small = picture()[::3, ::3]
    boxes = propose(small)
    assert nearest(boxes, tuple(side / 3 for side in SQUARE)) <= 1
    # 20 pixels of 500 are 3.36 of 84; the height of 50 is 298 of 297.6.
    assert 3.3 < (boxes[:, 2:] - boxes[:, :2]).min() < 9


def test_the_same_image_gives_the_same_bits_and_the_order_mixes_sizes():
    image = picture()[::2, ::2]
    boxes = propose(image)
    np.testing.assert_array_equal(propose(image.copy()), boxes)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert len(areas) >= 6
    half = len(areas) // 2
    # Neither by size alone nor without regard to it.
    assert areas[:half].mean() > areas[-half:].mean()
    assert (np.diff(areas) > 0).any()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (3, 3), (2, 60), (400, 8), (400, 6)])
def test_tiny_and_narrow_images(height, width):
    image = np.full((height, width, 3), 90, np.uint8)
    image[: -(-height // 2)] = 200
    boxes = propose(image)
    assert boxes.shape == (len(boxes), 4)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= 0).all()
    assert (boxes <= [width, height, width, height]).all()
    # A strip that is under 20 pixels high when 500 are its width, or the other way round at a height of 1,000, holds no
    # box that is large enough.
    assert (len(boxes) == 0) == (height * 500 / width < 20 or width * 1000 / height < 20)


def test_grey_and_plain_images():
    plain = np.full((60, 80, 3), 127, np.uint8)
    np.testing.assert_array_equal(propose(plain), [[0, 0, 80, 60]])
    grey = picture()[..., :1].repeat(3, axis=-1)
    assert nearest(propose(grey), SQUARE) <= 2


def record(image_id: int, source) -> Record:
    nothing = np.zeros(0, np.float32)
    return Record(
        image_id, source, 30, 40, np.zeros((0, 4), np.float32), nothing.astype(np.int32), nothing.astype(bool), nothing,
        (), file_name=f"{image_id}.png",
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_all_images_in_order_and_an_error_in_the_place_of_one(workers):
    pictures = {}
    for number in (5, 3, 8):
        pictures[number] = np.full((30, 40, 3), 20 * number, np.uint8)
        pictures[number][number : number + 12, 9:30] = 255
    records = [record(number, source) for number, source in pictures.items()]
    records.insert(1, record(9, b"no image"))
    num = 3
    found = dict(propose_all(records, "fast", num, workers))
    assert list(found) == [5, 9, 3, 8]
    assert isinstance(found[9], UserError)
    assert "image id 9" in str(found[9])
    for number, source in pictures.items():
        np.testing.assert_array_equal(found[number].boxes, propose(source)[:num])
        assert (np.diff(found[number].scores) < 0).all()
        assert found[number].valid.all()
