"""Mask R-CNN, ResNeXt-101-FPN, COCO persons, keypoints, 130,000 steps (He et al., 2017, table 9).

Start from an ImageNet ResNeXt-101 64x4d: name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"keypoint AP": 67.3, "keypoint AP50": 88.0, "keypoint AP75": 73.3}
SOURCE = "Mask R-CNN paper, table 9"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table9_x101", zoo.resnext(zoo.keypoint_rcnn(101), 64, 4))
    config = mask_rcnn.persons_updated(config)
    return base.finish(config, mode)
