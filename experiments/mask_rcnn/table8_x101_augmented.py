"""Mask R-CNN, ResNeXt-101-FPN, COCO, scales drawn in training (He et al., 2017, table 8).

Start from an ResNeXt-101 64x4d trained on ImageNet-5k: name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 39.2, "mask AP50": 62.5, "mask AP75": 41.6, "box AP": 43.5, "box AP50": 65.9, "box AP75": 47.2}
SOURCE = "Mask R-CNN paper, table 8"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table8_x101_augmented", zoo.resnext(zoo.mask_rcnn(101), 64, 4))
    config = mask_rcnn.updated(config)
    config = mask_rcnn.train_time_augmentation(config)
    return base.finish(config, mode)
