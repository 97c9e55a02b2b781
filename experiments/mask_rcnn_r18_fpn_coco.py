"""Mask R-CNN, ResNet-18-FPN, COCO, 1x schedule: the smallest that is worth running on real images.

Start from an ImageNet ResNet-18: name it with --config.train.init. No reference publishes this row.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {}
SOURCE = "no paper"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn_r18_fpn_coco", zoo.mask_rcnn(depth=18))
    config = base.schedule(config, 1)
    return base.finish(config, mode)
