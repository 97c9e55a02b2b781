"""Mask R-CNN, ResNeXt-101-FPN, COCO, 180,000 steps, RPN trained along (He et al., 2017, table 8).

Start from an ImageNet ResNeXt-101 64x4d: name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 37.6, "mask AP50": 60.4, "mask AP75": 39.9, "box AP": 41.7, "box AP50": 64.1, "box AP75": 45.2}
SOURCE = "Mask R-CNN paper, table 8"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table8_updated_e2e", zoo.resnext(zoo.mask_rcnn(101), 64, 4))
    config = mask_rcnn.updated(config)
    return base.finish(config, mode)
