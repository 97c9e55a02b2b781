"""Mask R-CNN, ResNet-50-C5 of stride 32, COCO, RoIAlign (He et al., 2017, table 2d).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 30.9, "mask AP50": 51.8, "mask AP75": 32.1, "box AP": 34.0, "box AP50": 55.3, "box AP75": 36.4}
SOURCE = "Mask R-CNN paper, table 2d"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table2d_roialign", zoo.c5(zoo.mask_rcnn(50)))
    config = mask_rcnn.baseline(config)
    return base.finish(config, mode)
