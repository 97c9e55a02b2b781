"""Anchor boxes, in NumPy: they depend on shapes alone and enter a compiled program as constants."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def cell_anchors(
    sizes: Sequence[float | int], ratios: Sequence[float | int], rounded: bool
) -> Float[np.ndarray, "n 4"]:
    """The anchors of one cell, `len(sizes) * len(ratios)` boxes around the origin.

    A size is the square root of the area in pixels and a ratio is height over width (Faster R-CNN, section 3.1.1).
    The two reference libraries differ in values and in order, and a checkpoint has an output channel for each anchor.
    Detectron2 (`rounded=False`) is exact and goes through all ratios of the first size, then of the next; torchvision
    (`rounded=True`) rounds the corners half to even and goes through all sizes of the first ratio, then of the next.
    """
    if rounded:
        # In float32 throughout, since corners at exact halves decide which way the rounding goes.
        scale = np.sqrt(np.asarray(ratios, np.float32))[:, None]
        side = np.asarray(sizes, np.float32)[None, :]
        widths, heights = (1 / scale * side).ravel(), (scale * side).ravel()
    else:
        scale = np.sqrt(np.asarray(ratios, np.float64))[None, :]
        side = np.asarray(sizes, np.float64)[:, None]
        widths, heights = (side / scale).ravel(), (side * scale).ravel()
    corners = np.stack([-widths, -heights, widths, heights], axis=1) / 2
    return (np.round(corners) if rounded else corners).astype(np.float32)


def grid_anchors(
    cells: Float[np.ndarray, "n 4"], shape: Sequence[int], stride: Sequence[float | int], offset: float = 0.0
) -> Float[np.ndarray, "a 4"]:
    """Copies of `cells` at every position of a feature map of `shape` (rows, columns), `a = rows * columns * n`.

    `stride` is (y, x) in pixels; position (0, 0) lies `offset` strides from the corner of the image. Order: row,
    column, cell, which is that of a flattened NHWC map. torchvision derives the stride from the padded image and the
    map (`image // map`), which is not always a power of two: the caller passes what its weights were trained with.
    """
    y, x = ((np.arange(length, dtype=np.float32) + offset) * step for length, step in zip(shape, stride, strict=True))
    y, x = np.meshgrid(y, x, indexing="ij")
    shifts = np.stack([x, y, x, y], axis=-1).astype(np.float32)
    return (shifts[:, :, None, :] + cells).reshape(-1, 4)
