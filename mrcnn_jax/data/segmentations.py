"""One object's segmentation, in any form that exporters write, to clean polygons or compressed RLE.

Nothing here draws a mask, and nothing that passes can make the drawing of one run wild: polygons lie within one
image side of the image, and the runs of an RLE fill exactly the image.
"""

from array import array
from collections.abc import Iterator
from itertools import pairwise
from math import isfinite
from operator import mul

import numpy as np
from pycocotools import mask as rle

from mrcnn_jax.data.report import Report

# {"size": [h, w], "counts": bytes}
Rle = dict
# Flat x, y, x, y, ...
Ring = list[float | int]
Polygons = list[Ring]


def canonical(value, height: int, width: int, report: Report, label) -> Polygons | Rle | None:
    """Brings a COCO "segmentation" into one of two forms.

    Polygons: flat [x, y, x, y, ...] lists, each of three points or more and some area. Taken: flat, once too deep or
    given as points; numbers as strings; two corners (labelme's rectangle). Parts that are no polygon are dropped and
    reported.

    RLE: compressed, of the image's size. Taken: counts as a list, as text or bytes. One that does not fill the image
    is an error.

    Args:
        label: the annotation's id, for the report.

    Returns:
        Polygons, RLE, or None where there is only a box.
    """
    if isinstance(value, dict) and value:
        return _rle(value, height, width, report, label)
    if not value:
        return None
    if not isinstance(value, list):
        report.warning("segmentation neither polygons nor RLE, only the box is used", "annotation", [label])
        return None
    parts = []
    for ring in _rings(value):
        ring, problem = _polygon(ring, max(height, width))
        if problem:
            report.warning(f"polygon {problem}, part dropped", "annotation", [label])
        else:
            parts.append(ring)
    if not parts:
        report.warning("no part of the segmentation is usable, only the box is used", "annotation", [label])
    return parts or None


def polygon_area(ring: Ring) -> float:
    """Area of a flat [x, y, x, y, ...] polygon in square pixels, by the shoelace formula."""
    xs, ys = ring[0::2], ring[1::2]
    return abs(sum(map(mul, xs, ys[1:] + ys[:1])) - sum(map(mul, ys, xs[1:] + xs[:1]))) / 2


def _on_a_line(ring: Ring) -> bool:
    """Whether all points lie on one line; a bow tie has no signed area either, and yet covers pixels."""
    points = list(zip(ring[0::2], ring[1::2], strict=True))
    x, y = points[0]
    far_x, far_y = max(points, key=lambda p: abs(p[0] - x) + abs(p[1] - y))
    return all((far_x - x) * (b - y) == (far_y - y) * (a - x) for a, b in points)


def area(segmentation: Polygons | Rle) -> float:
    """Square pixels of a canonical segmentation; parts that overlap count twice."""
    if isinstance(segmentation, dict):
        return float(rle.area(segmentation))
    return sum(polygon_area(ring) for ring in segmentation)


def bounds(segmentation: Polygons | Rle) -> list[float | int]:
    """The box of a canonical segmentation, as COCO's x, y, width, height."""
    if isinstance(segmentation, dict):
        return [float(v) for v in rle.toBbox(segmentation)]
    xs = [x for ring in segmentation for x in ring[0::2]]
    ys = [y for ring in segmentation for y in ring[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def runs(counts: bytes) -> np.ndarray | None:
    """Run lengths of a compressed RLE, int64, background first; None where the text is no RLE.

    pycocotools' coding: each number in groups of five bits from the lowest, bit 5 telling that another group
    follows, bit 4 of the last group being the sign, 48 added; from the fourth number on, the difference to the
    number two before.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = np.flatnonzero(codes & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:
        return None
    shift = 5 * (np.arange(len(codes)) - np.repeat(first, lengths))
    values = np.add.reduceat((codes & 31) << shift, first)
    values -= (codes[last] >> 4 & 1) << 5 * lengths
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def decode(segmentation: Rle) -> np.ndarray:
    """The pixels of a compressed RLE, uint8 0 or 1 [h, w] in Fortran order, as pycocotools decodes them.

    pycocotools' own `decode` warns under NumPy 2, and is no faster on a photograph.
    """
    height, width = segmentation["size"]
    lengths = runs(segmentation["counts"])
    # What the last run leaves over is background, as pycocotools has it.
    pixels = np.zeros(height * width, np.uint8)
    covered = np.repeat(np.arange(len(lengths), dtype=np.uint8) & 1, lengths)
    pixels[: len(covered)] = covered
    return pixels.reshape(width, height).T


class Store:
    """Canonical segmentations of many objects in little memory: the coordinates of all polygons are one array."""

    def __init__(self):
        self._coordinates = array("d")
        # Where the rings of an object end, and where the coordinates of a ring end.
        self._object_ends, self._ring_ends = array("q", [0]), array("q", [0])
        self._rles: dict[int, Rle] = {}

    def __len__(self) -> int:
        return len(self._object_ends) - 1

    def append(self, segmentation: Polygons | Rle | None) -> None:
        """Stores one more object's segmentation."""
        if isinstance(segmentation, dict):
            self._rles[len(self)] = segmentation
        elif segmentation is not None:
            for ring in segmentation:
                self._coordinates.extend(ring)
                self._ring_ends.append(len(self._coordinates))
        self._object_ends.append(len(self._ring_ends) - 1)

    def __getitem__(self, index: int) -> Polygons | Rle | None:
        if index in self._rles:
            return self._rles[index]
        first, last = self._object_ends[index], self._object_ends[index + 1]
        ends = self._ring_ends[first : last + 1]
        return [self._coordinates[a:b].tolist() for a, b in pairwise(ends)] or None

    def is_rle(self) -> np.ndarray:
        """bool [objects], true where the segmentation is an RLE."""
        found = np.zeros(len(self), bool)
        found[list(self._rles)] = True
        return found

    def is_box_only(self) -> np.ndarray:
        """bool [objects], true where there is no segmentation."""
        return (np.diff(np.asarray(self._object_ends)) == 0) & ~self.is_rle()

    def scale(self, widths: np.ndarray, heights: np.ndarray) -> None:
        """Multiplies each object's polygons by its image's width and height."""
        per_object = np.diff(np.asarray(self._object_ends))
        per_ring = np.diff(np.asarray(self._ring_ends)) // 2
        factors = np.stack([np.asarray(widths), np.asarray(heights)], axis=-1).astype(np.float64)
        factors = np.repeat(np.repeat(factors, per_object, axis=0), per_ring, axis=0)
        self._coordinates = array("d", (np.asarray(self._coordinates).reshape(-1, 2) * factors).tobytes())


def _rle(value: dict, height: int, width: int, report: Report, label) -> Rle | None:
    counts, size = value.get("counts"), value.get("size")
    if list(size or ()) != [height, width]:
        report.error("RLE mask whose size is not the image's height and width, export it again", "annotation", [label])
        return None
    if isinstance(counts, list):
        lengths = np.asarray(counts) if all(type(n) is int and 0 <= n <= height * width for n in counts) else None
    else:
        counts = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
        lengths = runs(counts) if isinstance(counts, bytes) else None
    if lengths is None or len(lengths) == 0 or lengths.min() < 0 or lengths.sum() != height * width:
        report.error("RLE mask whose counts do not fill the image, export it again", "annotation", [label])
        return None
    if lengths[1::2].sum() == 0:
        report.warning("mask without a pixel, only the box is used", "annotation", [label])
        return None
    if isinstance(counts, list):
        return rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": counts}


def _rings(value: list) -> Iterator:
    """The coordinate lists of a polygon segmentation, however deeply nested."""
    if not isinstance(value[0], list):
        yield value
    elif len(value) > 2 and all(isinstance(p, list) and len(p) == 2 and not isinstance(p[0], list) for p in value):
        yield [number for point in value for number in point]
    else:
        for item in value:
            if isinstance(item, list) and item and isinstance(item[0], list):
                yield from _rings(item)
            else:
                yield item


def _polygon(ring, side: int) -> tuple[Ring, str]:
    """A clean polygon, or what is wrong with it."""
    try:
        total = sum(ring)
    except TypeError:
        try:
            ring = [float(number) for number in ring]
            total = sum(ring)
        except (TypeError, ValueError):
            return [], "that is not made of numbers"
    if len(ring) == 4:
        x1, y1, x2, y2 = ring
        ring = [x1, y1, x2, y1, x2, y2, x1, y2]
    if len(ring) % 2:
        return [], "with an odd number of coordinates"
    if len(ring) < 6:
        return [], "of fewer than three points"
    # Drawing one walks along its edges pixel by pixel: this bounds the walk. NaN compares false.
    if not (-side <= min(ring) and max(ring) <= 2 * side and isfinite(total)):
        return [], "that reaches far outside the image or is not finite"
    if polygon_area(ring) == 0 and _on_a_line(ring):
        return [], "without area"
    return ring, ""
