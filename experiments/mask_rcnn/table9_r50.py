"""Mask R-CNN, ResNet-50-FPN, COCO persons, keypoints, 130,000 steps (He et al., 2017, table 9).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"keypoint AP": 65.1, "keypoint AP50": 86.6, "keypoint AP75": 70.9}
SOURCE = "Mask R-CNN paper, table 9"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table9_r50", zoo.keypoint_rcnn(50))
    config = mask_rcnn.persons_updated(config)
    return base.finish(config, mode)
