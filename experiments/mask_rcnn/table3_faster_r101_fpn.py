"""Faster R-CNN with RoIAlign, ResNet-101-FPN, COCO (He et al., 2017, table 3).

Start from an ImageNet ResNet-101 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP (test-dev)": 37.3, "box AP50 (test-dev)": 59.6, "box AP75 (test-dev)": 40.3}
SOURCE = "Mask R-CNN paper, table 3"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table3_faster_r101_fpn", zoo.faster_rcnn(101))
    config = mask_rcnn.baseline(config)
    config.data.mask_size = 0
    return base.finish(config, mode)
