"""Anchors equal those of both reference libraries, to the last bit and in their order."""

from pathlib import Path

import numpy as np
import pytest

from mrcnn_jax.ops.anchors import cell_anchors, grid_anchors

GOLDEN = np.load(Path(__file__).parent / "golden" / "ops_geometry_anchors.npz")
SIZES, RATIOS, STRIDES = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0), (4, 8, 16, 32, 64)


@pytest.mark.parametrize("level", range(5))
def test_cells_of_a_pyramid(level):
    sizes = SIZES[level : level + 1]
    np.testing.assert_array_equal(cell_anchors(sizes, RATIOS, rounded=False), GOLDEN[f"d2.fpn.cell.{level}"])
    for image in ("fpn_64x96", "fpn_odd_97x131"):
        np.testing.assert_array_equal(cell_anchors(sizes, RATIOS, rounded=True), GOLDEN[f"tv.{image}.cell.{level}"])


def test_cells_of_one_map():
    np.testing.assert_array_equal(cell_anchors(SIZES, RATIOS, rounded=False), GOLDEN["d2.c4.cell"])
    np.testing.assert_array_equal(cell_anchors(SIZES, RATIOS, rounded=True), GOLDEN["tv.c4_96x160.cell.0"])


@pytest.mark.parametrize("image", ["fpn_64x96", "fpn_odd_97x131", "c4_96x160"])
def test_torchvision_grids(image):
    height, width = GOLDEN[f"tv.{image}.image_hw"]
    shapes = [tuple(map(int, shape)) for shape in GOLDEN[f"tv.{image}.feature_hw"]]
    sizes = [SIZES] if len(shapes) == 1 else [SIZES[i : i + 1] for i in range(5)]
    grids = [
        grid_anchors(cell_anchors(size, RATIOS, rounded=True), shape, (int(height // shape[0]), int(width // shape[1])))
        for size, shape in zip(sizes, shapes, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(grids), GOLDEN[f"tv.{image}.anchors"])


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_detectron2_grids(offset):
    grids = [
        grid_anchors(
            cell_anchors(SIZES[i : i + 1], RATIOS, rounded=False),
            (-(-64 // step), -(-96 // step)),
            (step, step),
            offset,
        )
        for i, step in enumerate(STRIDES)
    ]
    np.testing.assert_array_equal(np.concatenate(grids), GOLDEN[f"d2.fpn_64x96.offset{offset}"])


def test_detectron2_single_map():
    grid = grid_anchors(cell_anchors(SIZES, RATIOS, rounded=False), (6, 10), (16, 16))
    np.testing.assert_array_equal(grid, GOLDEN["d2.c4_96x160"])


def test_order_is_row_column_cell():
    cells = np.asarray([[-1, -1, 1, 1], [-2, -2, 2, 2]], np.float32)
    grid = grid_anchors(cells, (2, 3), (10, 100))
    assert grid.dtype == np.float32
    np.testing.assert_array_equal(grid.reshape(2, 3, 2, 4)[1, 2, 1], [198, 8, 202, 12])
