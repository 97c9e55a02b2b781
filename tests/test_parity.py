"""Whole models against recordings of the reference implementations, measured as scripts/parity.py does it."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from formula_weights import fill

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import parity

GOLDEN = Path(__file__).parent / "golden" / "models"
IMAGES = [np.load(GOLDEN / "inputs_rgb_uint8.npz")[f"small.{i}"] for i in range(2)]
# Relative, but for boxes in pixels and the number of pixels in which a mask differs.
BOUNDS = {
    "features": 1e-4, "rpn": 1e-4, "unmatched": 0, "box": 0.05, "score": 1e-4, "pixels": 8, "keypoint": 0.05,
    "loss": 1e-4, "gradient": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def leave_no_programs():
    yield
    jax.clear_caches()


def recording(name: str, part: str):
    return np.load(GOLDEN / f"{name}_{part}.npz")


def assert_follows(figures: dict[str, float], measured: str) -> None:
    """Every figure is within its bound, and one of them shows that something was measured."""
    assert not too_far(figures)
    assert figures[measured] > 0


def too_far(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if not value <= BOUNDS[name]}


def test_fast_rcnn_follows_detectron2():
    name = "d2_fast_rcnn_R_50_FPN"
    model = parity.load(GOLDEN, name, fill)
    assert_follows(parity.features(model, IMAGES, recording(name, "small")), "features")
    assert_follows(parity.detections(model, IMAGES, recording(name, "alone"), together=False), "box")
    assert_follows(parity.training(model, IMAGES, recording(name, "train"), name), "loss")


def test_mask_rcnn_follows_torchvision():
    name = "tv_maskrcnn_resnet50_fpn"
    model = parity.load(GOLDEN, name, fill)
    assert_follows(parity.features(model, IMAGES, recording(name, "small")), "rpn")
    # Of the second image there is no recording here.
    assert_follows(parity.detections(model, IMAGES[:1], recording(name, "alone"), together=False), "box")


def test_a_difference_is_seen():
    """With a norm's eps that is not that of the recorded model, the features are too far."""
    name = "d2_fast_rcnn_R_50_FPN"
    model = parity.load(GOLDEN, name, fill)
    model.config.backbone.norm_eps = 1e-3
    assert too_far(parity.features(model, IMAGES, recording(name, "small")))
