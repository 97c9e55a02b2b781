"""Text on pictures: a font at any size, and labels placed where they hide as little as possible."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Label:
    """A text that belongs to a box."""

    text: str
    box: tuple[float, float, float, float]
    colour: Colour


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib; it knows Latin, Greek and Cyrillic letters."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def write_labels(
    image: UInt8[np.ndarray, "h w 3"], labels: list[Label], objects: Float[np.ndarray, "n 4"], size: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Writes each label, the first ones with the best choice of places, on a plate of its colour.

    A label goes above, below, beside or inside its box, wherever it hides the least of the labels before it and of
    small objects. It never leaves the image. Small objects, and labels that find no room, have smaller letters; where
    there is no room even for those the label is left out, since one that hides another serves neither.

    Args:
        labels: most important first.
        objects: boxes xyxy of all objects.
        size: height of the letters in pixels.
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    height, width = image.shape[:2]
    placed = np.zeros((0, 4))
    areas = _areas(objects)
    small = max(round(size * 0.75), 9)
    for label in labels:
        x0, y0, x1, y1 = label.box
        sizes = (size, small) if min(x1 - x0, y1 - y0) > 3 * size else (small,)
        for letters in map(font, sizes):
            pad = max(round(letters.size * 0.25), 1)
            plate_w, plate_h = round(letters.getlength(label.text)) + 2 * pad, letters.size + 2 * pad
            places = _candidates(label.box, plate_w, plate_h, width, height)
            on_labels = _shared(places, placed).sum(axis=1) / (plate_w * plate_h)
            # What share of each object would be hidden: all of a small one counts far more than a corner of a big one.
            on_objects = (_shared(places, objects) / areas).sum(axis=1)
            cost = 4 * on_labels + on_objects + 0.02 * np.arange(len(places))
            best = int(np.argmin(cost))
            if on_labels[best] < 0.15 and on_objects[best] < 1.5:
                left, top, right, bottom = places[best].tolist()
                pen.rounded_rectangle((left, top, right - 1, bottom - 1), radius=pad, fill=label.colour)
                ink = (0, 0, 0) if np.dot(label.colour, (0.3, 0.59, 0.11)) > 140 else (255, 255, 255)
                pen.text((left + pad, (top + bottom) / 2), label.text, fill=ink, font=letters, anchor="lm")
                placed = np.concatenate([placed, places[best : best + 1]])
                break
    return np.asarray(canvas)


def _candidates(
    box: tuple[float, float, float, float], plate_w: int, plate_h: int, width: int, height: int
) -> Float[np.ndarray, "c 4"]:
    """Plates xyxy around and in a box, in order of preference, moved into the image."""
    x0, y0, x1, y1 = box
    corners = [
        (x0, y0 - plate_h), (x1 - plate_w, y0 - plate_h), (x0, y1), (x1 - plate_w, y1),
        (x1, y0), (x0 - plate_w, y0), (x1, y1 - plate_h), (x0 - plate_w, y1 - plate_h),
        (x0, y0), (x1 - plate_w, y0), (x0, y1 - plate_h), (x1 - plate_w, y1 - plate_h),
        ((x0 + x1 - plate_w) / 2, (y0 + y1 - plate_h) / 2),
    ]  # fmt: skip
    corners = np.clip(np.round(corners), 0, np.maximum([width - plate_w, height - plate_h], 0))
    return np.concatenate([corners, corners + np.array([plate_w, plate_h])], axis=1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1)


def _shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Area that each box of `a` shares with each of `b`."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.maximum(high - low, 0).prod(axis=2)
