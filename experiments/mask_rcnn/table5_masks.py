"""Mask R-CNN, ResNet-50-FPN, COCO persons, masks (He et al., 2017, table 5).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 53.6, "mask AP": 45.8}
SOURCE = "Mask R-CNN paper, table 5"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table5_masks", zoo.mask_rcnn(50))
    config = mask_rcnn.persons(config)
    return base.finish(config, mode)
