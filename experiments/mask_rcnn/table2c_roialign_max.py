"""Mask R-CNN, ResNet-50-C4, COCO, RoIAlign with the largest sample of a bin (He et al., 2017, table 2c).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 30.2, "mask AP50": 51.0, "mask AP75": 31.8}
SOURCE = "Mask R-CNN paper, table 2c"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table2c_roialign_max", zoo.c4(zoo.mask_rcnn(50)))
    config = mask_rcnn.baseline(config)
    config.model.roi.largest = True
    return base.finish(config, mode)
