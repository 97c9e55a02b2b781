"""Weights that are a function of their names, so that a recorded model needs no file of weights.

Every number is uniform, drawn by splitmix64 from a seed that is a hash of the array's name, and scaled such that
activations neither grow nor vanish. The recordings in `golden/models` were made with these.
"""

import hashlib
import math
import re
from collections.abc import Sequence

import numpy as np

_INCREMENT, _MIX = 0x9E3779B97F4A7C15, (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
# Gain of the weights and largest bias of the layers without a ReLU after them.
_LAST_LAYERS = (
    (r"fpn\.inner_blocks\.|fpn_lateral\d\.", 0.3, 0.1),
    (r"fpn\.layer_blocks\.|fpn_output\d\.", 0.5, 0.1),
    (r"rpn\.head\.cls_logits\.", 3.0, 0.5),
    (r"rpn\.head\.bbox_pred\.", 0.6, 0.1),
    (r"box_predictor\.cls_score\.", 1.25, 0.5),
    (r"box_predictor\.bbox_pred\.", 1.5, 0.1),
    (r"mask_fcn_logits\.", 1.5, 0.5),
)


def fill(key: str, shape: Sequence[int]) -> np.ndarray:
    """The array of a state-dict key, float32, in PyTorch's layout."""
    centre, half = _range(key, tuple(shape))
    return np.float32(centre) + np.float32(half) * _uniform(key, tuple(shape))


def _uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """From -1 to 1, in steps of 2**-23, which float32 holds exactly."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(_INCREMENT) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * _MIX[0]
        z = (z ^ (z >> np.uint64(27))) * _MIX[1]
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)).reshape(shape)


def _range(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Centre and half width."""
    if key.endswith("running_var"):
        return 1.0, 0.3
    if key.endswith("running_mean"):
        return 0.0, 0.3
    if len(shape) == 1 and key.endswith("weight"):
        # The last norm of a residual branch is small: activations would grow with the depth.
        return (0.4, 0.1) if re.search(r"bn3\.weight$|conv3\.norm\.weight$", key) else (1.0, 0.2)
    gain, bias = next(((g, b) for pattern, g, b in _LAST_LAYERS if re.search(pattern, key)), (math.sqrt(2), 0.1))
    if len(shape) == 1:
        return 0.0, bias
    # A transposed convolution of stride 2 sums a quarter of its products into a cell.
    fan_in = shape[0] * math.prod(shape[2:]) // 4 if "conv5_mask" in key else math.prod(shape[1:])
    half = math.sqrt(3) * gain / math.sqrt(fan_in)
    # Detectron2 feeds pixels whose deviation is 58, not 1.
    return 0.0, half / 58 if "bottom_up.stem.conv1" in key else half
