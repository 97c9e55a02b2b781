"""Names and layouts of the two libraries: whole state dicts go in and come out again, bit for bit."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from mrcnn_jax.checkpoints.exporting import state_dict
from mrcnn_jax.checkpoints.importing import convert
from mrcnn_jax.checkpoints.weight_files import WeightFile
from mrcnn_jax.overview import num_parameters

# {architecture: {key: shape}} of torchvision 0.28 and Detectron2 0.6.
LISTS = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "state_dicts.json.gz").read_bytes()))
# Millions of parameters as published; constant norms are none.
PUBLISHED = {
    "d2_mask_rcnn_R_50_FPN_3x": 44.34, "d2_faster_rcnn_R_50_FPN_3x": 41.70, "d2_keypoint_rcnn_R_50_FPN_3x": 59.13,
    "d2_mask_rcnn_R_50_C4_3x": 35.91, "d2_mask_rcnn_R_50_DC5_3x": 172.35, "d2_mask_rcnn_R_101_FPN_3x": 63.28,
    "d2_mask_rcnn_X_101_32x8d_FPN_3x": 107.43, "d2_cascade_mask_rcnn_R_50_FPN_3x": 71.98,
    "d2_mask_rcnn_R_50_FPN_100ep_LSJ": 46.30, "torchvision_maskrcnn_resnet50_fpn": 44.40,
    "torchvision_maskrcnn_resnet50_fpn_v2": 46.36,
}  # fmt: skip


def random_state_dict(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        key: np.array(rng.integers(1, 10**6), np.int64)
        if key.endswith("num_batches_tracked")
        else rng.random(shape, np.float32)
        for key, shape in shapes.items()
    }


@pytest.mark.parametrize("name", LISTS)
def test_a_state_dict_comes_back_bit_for_bit(name):
    arrays = random_state_dict(LISTS[name])
    imported = convert(WeightFile(arrays), name)
    library = "torchvision" if name.startswith("torchvision") else "detectron2"
    exported = state_dict(imported.variables(), imported.config, library)
    assert exported.keys() == arrays.keys()
    for key, array in arrays.items():
        assert exported[key].dtype == array.dtype, key
        assert exported[key].shape == array.shape, key
        assert exported[key].tobytes() == array.tobytes(), key
    if name in PUBLISHED:
        assert round(num_parameters(imported.variables()["params"]) / 1e6, 2) == PUBLISHED[name]
