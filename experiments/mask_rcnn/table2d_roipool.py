"""Mask R-CNN, ResNet-50-C5 of stride 32, COCO, RoIPool (He et al., 2017, table 2d).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 23.6, "mask AP50": 46.5, "mask AP75": 21.6, "box AP": 28.2, "box AP50": 52.7, "box AP75": 26.9}
SOURCE = "Mask R-CNN paper, table 2d"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table2d_roipool", zoo.c5(zoo.mask_rcnn(50)))
    config = mask_rcnn.baseline(config)
    config.model.roi.pooling = "pool"
    return base.finish(config, mode)
