"""Mask R-CNN, ResNet-50-C4, COCO (He et al., 2017, tables 2a, 2b and 2c).

It is also table 2b's sigmoid and table 2c's RoIAlign with the mean of its samples. Start from an ImageNet ResNet-50
(MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 30.3, "mask AP50": 51.2, "mask AP75": 31.5}
SOURCE = "Mask R-CNN paper, tables 2a, 2b and 2c"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table2a_r50_c4", zoo.c4(zoo.mask_rcnn(50)))
    config = mask_rcnn.baseline(config)
    return base.finish(config, mode)
