"""Mask R-CNN, ResNeXt-101-FPN, COCO (He et al., 2017, tables 1, 2a, 3 and 8).

Start from an ImageNet ResNeXt-101 64x4d: name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {
    "mask AP": 36.7, "mask AP50": 59.5, "mask AP75": 38.9, "box AP": 39.6, "box AP50": 61.5, "box AP75": 43.2,
    "mask AP (test-dev)": 37.1, "mask AP50 (test-dev)": 60.0, "mask AP75 (test-dev)": 39.4, "box AP (test-dev)": 39.8,
    "box AP50 (test-dev)": 62.3, "box AP75 (test-dev)": 43.4,
}  # fmt: skip
SOURCE = "Mask R-CNN paper, tables 1, 2a, 3 and 8"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table1_x101_fpn", zoo.resnext(zoo.mask_rcnn(101), 64, 4))
    config = mask_rcnn.baseline(config)
    return base.finish(config, mode)
