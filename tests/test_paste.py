"""Pasted pixels equal the reference libraries', run lengths equal pycocotools'."""

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax.evaluation.paste import encode_window, paste

GOLDEN = np.load(Path(__file__).parent / "golden" / "paste_masks.npz")
RULES = ("detectron2", "torchvision")


def full_image(mask, box, height, width, rule, threshold=0.5):
    window, (y, x) = paste(mask, box, height, width, rule, threshold)
    image = np.zeros((height, width), bool)
    image[y : y + window.shape[0], x : x + window.shape[1]] = window
    return image


def plain_detectron2(mask, box, height, width, threshold):
    """One pixel after the other, from the definition, in float64."""
    m = len(mask)
    padded = np.pad(mask.astype(np.float64), 1)
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * m - 0.5
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * m - 0.5
            if -1 < v < m and -1 < u < m:
                i, j = int(np.floor(v)), int(np.floor(u))
                fv, fu = v - i, u - j
                cell = padded[i + 1 : i + 3, j + 1 : j + 3]
                out[y, x] = np.array([1 - fv, fv]) @ cell @ np.array([1 - fu, fu])
    return out >= threshold


@pytest.mark.parametrize("rule", RULES)
def test_pixels_equal_the_reference(rule):
    height, width = GOLDEN["hw"].tolist()
    expected = np.unpackbits(GOLDEN[rule], axis=-1, count=width).astype(bool)
    for row, i in enumerate(GOLDEN["indices"]):
        found = full_image(GOLDEN["masks"][i], GOLDEN["boxes"][i], height, width, rule)
        np.testing.assert_array_equal(found, expected[row], err_msg=f"case {i}")


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_pixels_equal_the_definition(threshold):
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = rng.random((5, 5)).astype(np.float32)
        corner, side = rng.uniform(-8, 20, 2), rng.uniform(0.5, 25, 2)
        box = np.concatenate([corner, corner + side]).astype(np.float32)
        expected = plain_detectron2(mask, box, 24, 30, threshold)
        np.testing.assert_array_equal(full_image(mask, box, 24, 30, "detectron2", threshold), expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("box", [[50, 50, 60, 60], [-9, -9, -3, -3], [4, 4, 4, 4], [5, 5, 3, 3], [0, np.nan, 5, 5]])
def test_a_box_without_pixels_sets_at_most_one(rule, box):
    image = full_image(np.ones((4, 4), np.float32), np.array(box, np.float32), 20, 20, rule)
    # torchvision counts both ends of a box, so an empty one still covers a pixel.
    assert image.sum() <= (rule == "torchvision")


@pytest.mark.parametrize("rule", RULES)
def test_a_huge_box_costs_no_more_than_the_image(rule):
    mask = np.ones((28, 28), np.float32)
    window, corner = paste(mask, np.array([-1e8, -3e30, 2e8, 3e30], np.float32), 30, 40, rule)
    assert (window.shape, corner) == ((30, 40), (0, 0))


def encoded(image):
    return coco_mask.encode(np.asfortranarray(image.astype(np.uint8)))["counts"].decode()


def test_run_lengths_of_random_windows():
    rng = np.random.default_rng(1)
    for case in range(400):
        height, width = rng.integers(1, 70, 2).tolist()
        y0, x0 = (int(rng.integers(0, n)) * int(rng.random() > 0.4) for n in (height, width))
        h, w = (
            n - o if rng.random() < 0.4 else int(rng.integers(0, n - o + 1)) for n, o in ((height, y0), (width, x0))
        )
        window = rng.random((h, w)) < rng.choice([0, 0.05, 0.5, 0.95, 1])
        image = np.zeros((height, width), bool)
        image[y0 : y0 + h, x0 : x0 + w] = window
        coded = encode_window(window, y0, x0, height, width)
        assert coded == {"size": [height, width], "counts": encoded(image)}, case


@pytest.mark.parametrize("rule", RULES)
def test_paste_and_encode_together(rule):
    """Boxes inside, across and outside the border, of no size and far too large."""
    rng = np.random.default_rng(2)
    for case in range(150):
        centre, side = rng.uniform(-20, 120, 2), np.exp(rng.uniform(-3, 7, 2)) * (rng.random() > 0.1)
        box = np.concatenate([centre - side / 2, centre + side / 2]).astype(np.float32)
        mask = rng.random((7, 7)).astype(np.float32)
        window, (y, x) = paste(mask, box, 90, 100, rule)
        assert encode_window(window, y, x, 90, 100)["counts"] == encoded(full_image(mask, box, 90, 100, rule)), case


def test_long_runs():
    """Counts of many digits, and differences below zero."""
    image = np.zeros((3000, 2000), bool)
    image[10:2500, 700:1900] = True
    image[:, 1500:1503] = True
    assert encode_window(image[:, 700:1900], 0, 700, 3000, 2000)["counts"] == encoded(image)
    assert encode_window(np.ones((5, 6), bool), 0, 0, 5, 6)["counts"] == encoded(np.ones((5, 6), bool))
