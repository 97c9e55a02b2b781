"""Mask R-CNN, ResNeXt-152-FPN, COCO (He et al., 2017, table 8).

Start from an ResNeXt-152 32x8d trained on ImageNet-5k: name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 39.7, "mask AP50": 63.2, "mask AP75": 42.2, "box AP": 44.1, "box AP50": 66.4, "box AP75": 48.4}
SOURCE = "Mask R-CNN paper, table 8"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table8_x152", zoo.resnext(zoo.mask_rcnn(152), 32, 8))
    config = mask_rcnn.updated(config)
    config = mask_rcnn.train_time_augmentation(config)
    return base.finish(config, mode)
