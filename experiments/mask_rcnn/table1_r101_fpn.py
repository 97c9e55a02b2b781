"""Mask R-CNN, ResNet-101-FPN, COCO (He et al., 2017, tables 1, 2a and 3).

Start from an ImageNet ResNet-101 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {
    "mask AP": 35.4, "mask AP50": 57.3, "mask AP75": 37.5, "mask AP (test-dev)": 35.7, "mask AP50 (test-dev)": 58.0,
    "mask AP75 (test-dev)": 37.8, "box AP (test-dev)": 38.2, "box AP50 (test-dev)": 60.3, "box AP75 (test-dev)": 41.7,
}  # fmt: skip
SOURCE = "Mask R-CNN paper, tables 1, 2a and 3"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table1_r101_fpn", zoo.mask_rcnn(101))
    config = mask_rcnn.baseline(config)
    return base.finish(config, mode)
