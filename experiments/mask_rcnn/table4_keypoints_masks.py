"""Mask R-CNN, ResNet-50-FPN, COCO persons, keypoints and masks (He et al., 2017, tables 4 and 5).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {
    "box AP": 52.0, "mask AP": 45.1, "keypoint AP": 64.7, "keypoint AP (test-dev)": 63.1,
    "keypoint AP50 (test-dev)": 87.3, "keypoint AP75 (test-dev)": 68.7,
}  # fmt: skip
SOURCE = "Mask R-CNN paper, tables 4 and 5"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table4_keypoints_masks", zoo.keypoint_rcnn(50))
    config.model.mask = zoo.mask_rcnn().mask
    config = mask_rcnn.persons(config)
    return base.finish(config, mode)
