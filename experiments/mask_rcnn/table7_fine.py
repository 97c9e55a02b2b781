"""Mask R-CNN, ResNet-50-FPN, Cityscapes, fine annotations (He et al., 2017, table 7).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init. The data set's JSON files are made by
scripts/cityscapes_to_coco.py.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 31.5, "mask AP (test)": 26.2, "mask AP50 (test)": 49.9}
SOURCE = "Mask R-CNN paper, table 7"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table7_fine", zoo.mask_rcnn(50))
    config = mask_rcnn.cityscapes(config, steps=24_000, drop=18_000)
    return base.finish(config, mode)
