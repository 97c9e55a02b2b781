"""Mask R-CNN, ResNeXt-152-FPN with a non-local block, COCO (He et al., 2017, table 8).

Start from an ResNeXt-152 32x8d trained on ImageNet-5k: name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 40.3, "mask AP50": 64.4, "mask AP75": 42.8, "box AP": 45.0, "box AP50": 67.8, "box AP75": 48.9}
SOURCE = "Mask R-CNN paper, table 8"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table8_x152_non_local", zoo.resnext(zoo.mask_rcnn(152), 32, 8))
    config = mask_rcnn.updated(config)
    config.model.backbone.non_local = True
    config = mask_rcnn.train_time_augmentation(config)
    return base.finish(config, mode)
