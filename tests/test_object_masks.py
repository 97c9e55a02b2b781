"""Box-relative masks against plain full-size rasterisation."""

import numpy as np
import pytest
from pycocotools import mask as rle

from mrcnn_jax.data.object_masks import box_mask, clip_polygon, visible_box

L_SHAPE = [10.0, 10.0, 50.0, 10.0, 50.0, 25.0, 30.0, 25.0, 30.0, 70.0, 10.0, 70.0]


def star(seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    radius = rng.uniform(12, 38, 12)
    return np.stack([40 + radius * np.cos(angles), 40 + radius * np.sin(angles)], -1).reshape(-1).tolist()


def bounds(flat: list[float]) -> np.ndarray:
    points = np.reshape(flat, (-1, 2))
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def inside(points: np.ndarray, flat: list[float]) -> np.ndarray:
    """Even-odd rule at each point."""
    vertices = np.reshape(flat, (-1, 2))
    odd = np.zeros(len(points), bool)
    for (x1, y1), (x2, y2) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        if y1 == y2:
            continue
        spans = (y1 > points[:, 1]) != (y2 > points[:, 1])
        odd ^= spans & (points[:, 0] < x1 + (points[:, 1] - y1) * (x2 - x1) / (y2 - y1))
    return odd


def grid(box: np.ndarray, size: int) -> np.ndarray:
    steps = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(box[0] + steps * (box[2] - box[0]), box[1] + steps * (box[3] - box[1]))
    return np.stack([x, y], axis=-1).reshape(-1, 2)


@pytest.mark.parametrize("seed", range(5))
def test_polygon_is_the_even_odd_rule_at_the_grid_points(seed):
    polygon = star(seed)
    box = bounds(polygon)
    expected = inside(grid(box, 112), polygon).reshape(112, 112)
    assert (box_mask([polygon], box, 80, 80) == expected).mean() > 0.985


def test_polygon_in_part_of_its_box():
    box = np.array([25.0, 12.0, 47.0, 40.0])
    expected = inside(grid(box, 56), L_SHAPE).reshape(56, 56)
    assert (box_mask([L_SHAPE], box, 80, 80, size=56) == expected).mean() > 0.98


def test_tiny_window_of_a_huge_polygon():
    polygon = [-1e6, -1e6, 1e6, -1e6, 1e6, 10.05, -1e6, 10.05]
    mask = box_mask([polygon], np.array([10.0, 10.0, 10.1, 10.1]), 80, 80, size=16)
    np.testing.assert_array_equal(mask, np.repeat(np.arange(16)[:, None] < 8, 16, axis=1))


def test_parts_are_united():
    parts = [[0.0, 0.0, 10.0, 0.0, 10.0, 20.0, 0.0, 20.0], [10.0, 0.0, 20.0, 0.0, 20.0, 20.0, 10.0, 20.0]]
    assert box_mask(parts, np.array([0.0, 0.0, 20.0, 20.0]), 20, 20, size=32).all()
    left = box_mask(parts[:1], np.array([0.0, 0.0, 20.0, 20.0]), 20, 20, size=32)
    np.testing.assert_array_equal(left, np.repeat(np.arange(32)[None] < 16, 32, axis=0))


def test_rle_at_its_own_resolution_is_the_bitmap():
    bitmap = np.random.default_rng(0).random((40, 56)) < 0.4
    segmentation = rle.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    mask = box_mask(segmentation, np.array([8.0, 4.0, 24.0, 20.0]), 40, 56, size=16)
    np.testing.assert_array_equal(mask, bitmap[4:20, 8:24])


@pytest.mark.parametrize("seed", range(3))
def test_rle_and_polygon_of_one_object_agree(seed):
    polygon = [4 * value for value in star(seed)]
    segmentation = rle.merge(rle.frPyObjects([polygon], 320, 320))
    box = bounds(polygon)
    assert (box_mask(segmentation, box, 320, 320) == box_mask([polygon], box, 320, 320)).mean() > 0.99


def test_empty_box_has_an_empty_mask():
    assert not box_mask([L_SHAPE], np.array([20.0, 20.0, 20.0, 30.0]), 80, 80, size=8).any()


def test_clip_polygon_to_a_window():
    window = np.array([0.0, 0.0, 10.0, 10.0])
    clipped = clip_polygon(np.array([[-5.0, 5.0], [5.0, -5.0], [15.0, 5.0], [5.0, 15.0]]), window)
    np.testing.assert_array_equal(bounds(clipped.reshape(-1)), window)
    # A diamond whose four corners lie outside: the window is all inside it.
    area = 0.5 * abs(np.sum(clipped[:, 0] * np.roll(clipped[:, 1], -1) - clipped[:, 1] * np.roll(clipped[:, 0], -1)))
    assert area == pytest.approx(100)
    assert len(clip_polygon(np.array([[20.0, 20.0], [30.0, 20.0], [25.0, 30.0]]), window)) == 0


def test_visible_box_follows_the_outline():
    segmentation = rle.merge(rle.frPyObjects([L_SHAPE], 80, 80))
    for form in ([L_SHAPE], segmentation):
        # Below the L's bar only its stem is left.
        np.testing.assert_allclose(visible_box(form, np.array([0.0, 40.0, 80.0, 80.0]), 80, 80), [10, 40, 30, 70])
        # In the notch of the L there is nothing, though its box covers it.
        assert visible_box(form, np.array([32.0, 30.0, 48.0, 60.0]), 80, 80) is None
