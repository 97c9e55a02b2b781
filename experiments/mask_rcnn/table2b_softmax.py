"""Mask R-CNN, ResNet-50-C4, COCO, classes compete for a mask's pixels (He et al., 2017, table 2b).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 24.8, "mask AP50": 44.1, "mask AP75": 25.1}
SOURCE = "Mask R-CNN paper, table 2b"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table2b_softmax", zoo.c4(zoo.mask_rcnn(50)))
    config = mask_rcnn.baseline(config)
    config.model.mask.softmax = True
    return base.finish(config, mode)
