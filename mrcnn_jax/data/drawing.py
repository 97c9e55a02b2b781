"""Shapes, fills and backgrounds of the drawn data set, in arithmetic that gives the same bits on every machine.

A shape is a signed distance: negative inside, zero on the outline, with gradient about one. One function then gives
both the anti-aliased picture (opacity `0.5 - distance`, clipped) and the exact mask (a pixel belongs to it when its
centre is inside, which is opacity above one half). On arrays only `+ - * / sqrt`, comparisons, integers and OpenCV's
bit-exact resize are used, since IEEE 754 fixes their results, while `sin` or `exp` may differ between builds of NumPy
in the last bit. While it is drawn an image is float32 with the channels first, which NumPy adds and multiplies
several times faster.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8


def _direction(degrees: int | float) -> tuple[float, float]:
    """Cosine and sine, rounded so that the last bit of the C library does not matter."""
    return round(math.cos(math.radians(degrees)), 6), round(math.sin(math.radians(degrees)), 6)


def _half_planes(u, v, num: int, apothem: float):
    """Distances to the sides of a regular polygon, one of whose corners points up (towards negative v)."""
    for i in range(num):
        x, y = _direction(90 + 360 * i / num)
        yield u * x + v * y - apothem


def _circle(u, v):
    return np.sqrt(u * u + v * v) - 1


def _square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) - 0.8


def _triangle(u, v):
    a, b, c = _half_planes(u, v, 3, 0.5)
    return np.maximum(np.maximum(a, b), c)


def _star(u, v):
    """A pentagram: inside at least four of its five lines, so the second largest distance decides."""
    first, *others = _half_planes(u, v, 5, 0.309017)
    second = np.full_like(first, -np.inf)
    for distance in others:
        second = np.maximum(second, np.minimum(first, distance))
        first = np.maximum(first, distance)
    return second


def _cross(u, v):
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(a, b) - 1, np.minimum(a, b) - 0.32)


def _ring(u, v):
    return np.abs(np.sqrt(u * u + v * v) - 0.75) - 0.25


def _crescent(u, v):
    # The disc that is taken away lies to the right; moving both keeps the rest near the origin.
    u = u - 0.35
    return np.maximum(np.sqrt(u * u + v * v) - 1, 0.85 - np.sqrt((u - 0.5) * (u - 0.5) + v * v))


def _heart(u, v):
    """A square on its corner and a disc on each of its two upper sides."""
    v = v + 0.15
    u = np.abs(u)
    tip = (u + np.abs(v)) * 0.707107 - 0.55
    lobe = np.sqrt((u - 0.388909) * (u - 0.388909) + (v + 0.388909) * (v + 0.388909)) - 0.55
    return np.minimum(tip, lobe)


# Signed distance of each class, in a frame where the shape is about two units across; u to the right, v down.
SHAPES: dict[str, Callable] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
}


@dataclass(frozen=True)
class Stamp:
    """A shape rasterised on its own window of the pixel grid; the window may reach over the border of the image."""

    top: int
    left: int
    opacity: Float32[np.ndarray, "h w"]

    @property
    def inside(self) -> Bool[np.ndarray, "h w"]:
        """The exact mask: pixels whose centre is in the shape."""
        return self.opacity > 0.5

    def crop(self, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Slices of an image of that size and of the window, that cover the same pixels."""
        h, w = self.opacity.shape
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = max(min(self.top + h, height), top), max(min(self.left + w, width), left)
        window = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        return (slice(top, bottom), slice(left, right)), window

    def extremes(self) -> Float32[np.ndarray, "4 2"]:
        """x, y of the top, right, bottom and left-most pixels; of several, the one nearest to their middle."""
        inside = self.inside
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        points = [
            (_middle(inside[rows[0]]), rows[0]),
            (columns[-1], _middle(inside[:, columns[-1]])),
            (_middle(inside[rows[-1]]), rows[-1]),
            (columns[0], _middle(inside[:, columns[0]])),
        ]
        return np.array(points, np.float32) + np.array([self.left, self.top], np.float32)


def _middle(line: Bool[np.ndarray, " n"]) -> int:
    """The true position nearest to the mean of all of them."""
    ties = np.flatnonzero(line)
    return int(ties[np.abs(ties - ties.sum() / len(ties)).argmin()])


def stamp(name: str, x: float, y: float, radius: float, aspect: float, degrees: int) -> Stamp:
    """Rasterises one shape.

    Args:
        name: key of `SHAPES`.
        x, y: centre in pixels, where pixel i covers [i, i + 1).
        radius: half the extent along the shape's own horizontal axis, in pixels.
        aspect: extent along its vertical axis relative to the horizontal one, at most 1.
        degrees: clockwise rotation.
    """
    # Corners of a square lie at 0.8 * sqrt(2) units, beyond the unit circle; one more pixel holds the soft edge.
    reach = 1.25 * radius + 1
    top, left = math.floor(y - reach), math.floor(x - reach)
    side = math.ceil(2 * reach) + 1
    dy = np.arange(side, dtype=np.float32)[:, None] + np.float32(top + 0.5 - y)
    dx = np.arange(side, dtype=np.float32)[None, :] + np.float32(left + 0.5 - x)
    cos, sin = _direction(degrees)
    u = (dx * cos + dy * sin) / radius
    v = (dy * cos - dx * sin) / (radius * aspect)
    opacity = np.clip(0.5 - SHAPES[name](u, v) * (radius * aspect), 0, 1)
    return Stamp(top, left, opacity)


def merge(stamps: list[Stamp]) -> Stamp:
    """The union of several shapes as one."""
    top, left = min(s.top for s in stamps), min(s.left for s in stamps)
    bottom = max(s.top + s.opacity.shape[0] for s in stamps)
    right = max(s.left + s.opacity.shape[1] for s in stamps)
    opacity = np.zeros((bottom - top, right - left), np.float32)
    for s in stamps:
        h, w = s.opacity.shape
        window = opacity[s.top - top : s.top - top + h, s.left - left : s.left - left + w]
        np.maximum(window, s.opacity, out=window)
    return Stamp(top, left, opacity)


def _noise(rng: np.random.Generator, height: int, width: int, octaves: tuple[int, ...]) -> Float32[np.ndarray, "h w"]:
    """Smooth noise in [0, 1]: random grids with that many cells a side, enlarged, each half as strong as the last."""
    total = np.zeros((height, width), np.float32)
    weight = 1.0
    for cells in octaves:
        grid = rng.integers(0, 256, (cells, cells), dtype=np.uint8)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR_EXACT) * np.float32(weight)
        weight /= 2
    return total / np.float32(255 * (2 - 2 * weight))


def _colours(rng: np.random.Generator, num: int) -> Float32[np.ndarray, "{num} 3 1 1"]:
    return rng.integers(16, 240, (num, 3, 1, 1)).astype(np.float32)


def background(rng: np.random.Generator, height: int, width: int, clutter: int) -> Float32[np.ndarray, "3 h w"]:
    """Noise of several octaves between two colours, ragged patches and up to `clutter` crooked lines: of no class."""
    first, second = _colours(rng, 2)
    image = first + (second - first) * _noise(rng, height, width, (2, 5, 11, 23, 47))
    for _ in range(int(rng.integers(0, 3)) if clutter else 0):
        patch = np.clip((_noise(rng, height, width, (4, 9, 19)) - 0.55) * 12, 0, 0.7)
        image += (_colours(rng, 1)[0] - image) * patch
    canvas = cv2.merge(list(np.rint(image).astype(np.uint8)))
    for _ in range(int(rng.integers(0, clutter + 1))):
        corners = rng.integers(0, (width, height), (int(rng.integers(2, 5)), 2), dtype=np.int32)
        colour = [int(c) for c in rng.integers(16, 240, 3)]
        thickness = 1 + int(rng.integers(0, max(height, width) // 48 + 1))
        cv2.polylines(canvas, [corners], False, colour, thickness, cv2.LINE_AA)
    return np.stack(cv2.split(canvas)).astype(np.float32)


def _texture(rng: np.random.Generator, height: int, width: int) -> Float32[np.ndarray, "h w"]:
    """How far each pixel of a fill lies between its two colours."""
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None, :]
    kind = int(rng.integers(0, 5))
    cos, sin = _direction(int(rng.integers(0, 360)))
    along = x * cos + y * sin
    period = float(rng.integers(4, 11))
    if kind == 0:  # flat
        return np.zeros((height, width), np.float32)
    if kind == 1:  # gradient
        return (along - along.min()) / (height + width)
    if kind == 2:  # stripes
        return np.abs(along / period - np.rint(along / period)) * 2
    if kind == 3:  # checks
        across = y * cos - x * sin
        return ((np.floor(along / period) + np.floor(across / period)) % 2).astype(np.float32)
    return _noise(rng, height, width, (5, 11))


def paint(rng: np.random.Generator, image: Float32[np.ndarray, "3 h w"], stamp: Stamp, contrast: int) -> None:
    """Lays a shape over the image, in place, in two random colours and a random texture.

    Of `contrast` random colours the one that differs most from what lies beneath is taken; 1 leaves it to chance.
    """
    here, window = stamp.crop(*image.shape[1:])
    beneath = image[:, *here]
    *candidates, other = _colours(rng, contrast + 1)
    # Differences on a sparse sample; rounded, since whole numbers have the same sum in any order.
    sample = np.rint(beneath[:, ::4, ::4])
    colour = max(candidates, key=lambda c: np.abs(sample - c).sum(dtype=np.float64))
    texture = _texture(rng, *beneath.shape[1:])
    beneath += (colour + (other - colour) * 0.35 * texture - beneath) * stamp.opacity[window]


def finish(rng: np.random.Generator, image: Float32[np.ndarray, "3 h w"], noise: int) -> UInt8[np.ndarray, "h w 3"]:
    """Adds sensor noise of up to that many grey levels and rounds to bytes."""
    grain = rng.integers(-noise, noise + 1, image.shape, dtype=np.int8)
    return cv2.merge(list(np.clip(np.rint(image) + grain, 0, 255).astype(np.uint8)))
