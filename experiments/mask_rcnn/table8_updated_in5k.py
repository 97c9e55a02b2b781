"""Mask R-CNN, ResNeXt-101-FPN, COCO, 180,000 steps, from ImageNet-5k (He et al., 2017, table 8).

It differs from table8_updated_e2e.py in what it starts from. Start from an ResNeXt-101 64x4d trained on ImageNet-5k:
name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 38.6, "mask AP50": 61.7, "mask AP75": 40.9, "box AP": 42.7, "box AP50": 65.1, "box AP75": 46.6}
SOURCE = "Mask R-CNN paper, table 8"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table8_updated_in5k", zoo.resnext(zoo.mask_rcnn(101), 64, 4))
    config = mask_rcnn.updated(config)
    return base.finish(config, mode)
