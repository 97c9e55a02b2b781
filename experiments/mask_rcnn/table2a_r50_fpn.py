"""Mask R-CNN, ResNet-50-FPN, COCO (He et al., 2017, tables 2a and 2e).

It is also table 2e's fully convolutional mask head. Start from an ImageNet ResNet-50 (MSRA): name it with
--config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 33.6, "mask AP50": 55.2, "mask AP75": 35.3}
SOURCE = "Mask R-CNN paper, tables 2a and 2e"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table2a_r50_fpn", zoo.mask_rcnn(50))
    config = mask_rcnn.baseline(config)
    return base.finish(config, mode)
