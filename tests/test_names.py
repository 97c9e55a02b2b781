"""Names and layouts of the two libraries: whole state dicts go in and come out again, bit for bit."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from mrcnn_jax.checkpoints.exporting import state_dict
from mrcnn_jax.checkpoints.importing import convert
from mrcnn_jax.checkpoints.names import flatten
from mrcnn_jax.checkpoints.weight_files import WeightFile
from mrcnn_jax.models.build import build, variable_shapes
from mrcnn_jax.overview import num_parameters

# {architecture: {key: shape}} of torchvision 0.28 and Detectron2 0.6.
LISTS = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "state_dicts.json.gz").read_bytes()))
# Detectron2's RPNs alone, `rpn_R_50_FPN` and `rpn_R_50_C4`, are these models without their RoI heads.
for base in ("FPN", "C4"):
    LISTS[f"d2_rpn_R_50_{base}_1x"] = {
        key: shape for key, shape in LISTS[f"d2_faster_rcnn_R_50_{base}_3x"].items() if not key.startswith("roi_heads.")
    }
# Millions of parameters as published; constant norms are none.
PUBLISHED = {
    "d2_mask_rcnn_R_50_FPN_3x": 44.34, "d2_faster_rcnn_R_50_FPN_3x": 41.70, "d2_keypoint_rcnn_R_50_FPN_3x": 59.13,
    "d2_mask_rcnn_R_50_C4_3x": 35.91, "d2_mask_rcnn_R_50_DC5_3x": 172.35, "d2_mask_rcnn_R_101_FPN_3x": 63.28,
    "d2_mask_rcnn_X_101_32x8d_FPN_3x": 107.43, "d2_cascade_mask_rcnn_R_50_FPN_3x": 71.98,
    "d2_mask_rcnn_R_50_FPN_100ep_LSJ": 46.30, "torchvision_maskrcnn_resnet50_fpn": 44.40,
    "torchvision_maskrcnn_resnet50_fpn_v2": 46.36,
}  # fmt: skip


def random_state_dict(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Random numbers, of which every array has its own stretch: a hundred million would take seconds to draw."""
    rng = np.random.default_rng(0)
    longest = max(math.prod(shape) for shape in shapes.values())
    numbers = rng.random(longest + 100_003, np.float32)

    def array(key: str, shape: list[int]) -> np.ndarray:
        if key.endswith("num_batches_tracked"):
            return np.array(rng.integers(1, 10**6), np.int64)
        start, size = rng.integers(100_003), math.prod(shape)
        return numbers[start : start + size].reshape(shape)

    return {key: array(key, shape) for key, shape in shapes.items()}


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint32 if array.dtype == np.float32 else np.uint64)


@pytest.mark.parametrize("name", LISTS)
def test_a_state_dict_comes_back_bit_for_bit(name):
    arrays = random_state_dict(LISTS[name])
    imported = convert(WeightFile(arrays), name)
    library = "torchvision" if name.startswith("torchvision") else "detectron2"
    expected = flatten(variable_shapes(build(imported.config)))
    assert {path: leaf.shape for path, leaf in imported.leaves.items()} == {p: x.shape for p, x in expected.items()}
    exported = state_dict(imported.variables(), imported.config, library)
    assert exported.keys() == arrays.keys()
    for key, array in arrays.items():
        assert exported[key].dtype == array.dtype, key
        assert exported[key].shape == array.shape, key
        assert np.array_equal(bits(exported[key]), bits(array)), key
    if name in PUBLISHED:
        assert round(num_parameters(imported.variables()["params"]) / 1e6, 2) == PUBLISHED[name]
