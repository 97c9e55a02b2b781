"""Mask R-CNN, ResNet-50-FPN, COCO persons, keypoints (He et al., 2017, tables 4, 5 and 6).

It is also table 6's RoIAlign and table 9's original baseline. Start from an ImageNet ResNet-50 (MSRA): name it with
--config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {
    "box AP": 50.7, "keypoint AP": 64.2, "keypoint AP50": 86.6, "keypoint AP75": 69.7, "keypoint AP (test-dev)": 62.7,
    "keypoint AP50 (test-dev)": 87.0, "keypoint AP75 (test-dev)": 68.4,
}  # fmt: skip
SOURCE = "Mask R-CNN paper, tables 4, 5 and 6"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table4_keypoints", zoo.keypoint_rcnn(50))
    config = mask_rcnn.persons(config)
    return base.finish(config, mode)
