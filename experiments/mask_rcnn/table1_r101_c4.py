"""Mask R-CNN, ResNet-101-C4, COCO (He et al., 2017, tables 1 and 2a).

Start from an ImageNet ResNet-101 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {
    "mask AP": 32.7, "mask AP50": 54.2, "mask AP75": 34.3, "mask AP (test-dev)": 33.1, "mask AP50 (test-dev)": 54.9,
    "mask AP75 (test-dev)": 34.8,
}  # fmt: skip
SOURCE = "Mask R-CNN paper, tables 1 and 2a"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table1_r101_c4", zoo.c4(zoo.mask_rcnn(101)))
    config = mask_rcnn.baseline(config)
    return base.finish(config, mode)
