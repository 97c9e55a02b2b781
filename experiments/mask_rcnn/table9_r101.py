"""Mask R-CNN, ResNet-101-FPN, COCO persons, keypoints, 130,000 steps (He et al., 2017, table 9).

Start from an ImageNet ResNet-101 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"keypoint AP": 66.1, "keypoint AP50": 87.7, "keypoint AP75": 71.7}
SOURCE = "Mask R-CNN paper, table 9"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table9_r101", zoo.keypoint_rcnn(101))
    config = mask_rcnn.persons_updated(config)
    return base.finish(config, mode)
