"""torchvision's own models beside ours from their state dicts, image by image. Runs where torchvision is installed.

The images are drawn; name a folder of others with MRCNN_TEST_IMAGES.
"""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import mrcnn_jax
from mrcnn_jax.conventions import rule_of
from mrcnn_jax.data.images import decode

torch = pytest.importorskip("torch")
detection = pytest.importorskip("torchvision.models.detection")

SHORT, LONG = 192, 320
BUILDERS = (
    "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn_v2",
)  # fmt: skip


def images() -> list[np.ndarray]:
    if folder := os.environ.get("MRCNN_TEST_IMAGES"):
        return [decode(path) for path in sorted(Path(folder).glob("*.jpg"))[:6]]
    rng = np.random.default_rng(0)
    drawn = []
    for height, width in ((120, 160), (200, 131), (97, 300)):
        image = cv2.resize(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8), (width, height))
        for _ in range(12):
            x, y, r = (int(v) for v in rng.integers((0, 0, 5), (width, height, 40)))
            cv2.circle(image, (x, y), r, [int(v) for v in rng.integers(0, 256, 3)], -1)
        drawn.append(image)
    return drawn


def seeded(builder: str):
    """A model of torchvision with random weights that find things: no map grows with depth, and scores differ."""
    torch.manual_seed(0)
    model = getattr(detection, builder)(weights=None, weights_backbone=None, min_size=SHORT, max_size=LONG)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
                torch.nn.init.uniform_(module.weight, 0.8, 1.2)
                if name.endswith("bn3"):
                    module.weight *= 0.4
        # Of the weights of what predicts; of FPN and everything else below.
        gains = {
            "rpn.head.cls_logits": 3.0, "rpn.head.bbox_pred": 0.5, "cls_score": 6.0, "box_predictor.bbox_pred": 1.0,
        }  # fmt: skip
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and not name.startswith("backbone.body"):
                gain = next((g for end, g in gains.items() if name.endswith(end)), 0.6 if "fpn" in name else 1.4)
                torch.nn.init.normal_(module.weight, std=gain / module.weight[0].numel() ** 0.5)
    return model.eval()


@pytest.mark.parametrize("builder", BUILDERS)
def test_the_same_detections(builder, tmp_path):
    theirs = seeded(builder)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    ours = mrcnn_jax.load(tmp_path / "model.pth", {"box.num_candidates": 20_000})
    assert rule_of(ours.config) == "torchvision"
    for image in images():
        with torch.no_grad():
            (expected,) = theirs([torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)])
        expected = {key: value.numpy() for key, value in expected.items()}
        (found,) = ours.predict([image], min_size=SHORT, max_size=LONG)
        assert len(expected["boxes"]) > 10
        assert len(found.boxes) == len(expected["boxes"])
        free, swapped = np.ones(len(found.boxes), bool), 0
        for k, box in enumerate(expected["boxes"]):
            distance = np.abs(found.boxes - box).max(axis=1)
            distance = np.where(free & (found.labels + 1 == expected["labels"][k]), distance, np.inf)
            best = int(distance.argmin())
            free[best] = False
            assert distance[best] < 0.05
            assert abs(found.scores[best] - expected["scores"][k]) < 1e-4
            if found.masks is not None:
                differing = (found.masks[best] != (expected["masks"][k, 0] > 0.5)).sum()
                assert differing <= max(8, 0.001 * found.masks[best].sum())
            if found.keypoints is not None:
                points = expected["keypoints"][k, :, :2] + 0.5
                far = np.abs(found.keypoints[best, :, :2] - points).max(axis=1) >= 0.05
                np.testing.assert_allclose(found.keypoints[best, :, 2], expected["keypoints_scores"][k], atol=1e-4)
                swapped += far.sum()
        # Two peaks of a heatmap may be equal to rounding: then either is the highest, with the same score.
        assert swapped <= 1
