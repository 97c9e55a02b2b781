"""Mask R-CNN, ResNet-50-FPN, COCO persons, keypoints, RoIPool (He et al., 2017, table 6).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"keypoint AP": 59.8, "keypoint AP50": 86.2, "keypoint AP75": 66.7}
SOURCE = "Mask R-CNN paper, table 6"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table6_roipool", zoo.keypoint_rcnn(50))
    config = mask_rcnn.persons(config)
    config.model.roi.pooling = "pool"
    return base.finish(config, mode)
