"""Mask R-CNN, ResNet-50-C4, COCO, one mask for all classes (He et al., 2017, section 4.1).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 29.7}
SOURCE = "Mask R-CNN paper, section 4.1"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table2b_class_agnostic", zoo.c4(zoo.mask_rcnn(50)))
    config = mask_rcnn.baseline(config)
    config.model.mask.class_agnostic = True
    return base.finish(config, mode)
