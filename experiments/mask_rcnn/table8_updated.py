"""Mask R-CNN, ResNeXt-101-FPN, COCO, 180,000 steps (He et al., 2017, table 8).

RPN and Mask R-CNN are trained one after the other: this is the second, on the proposals of an RPN of its own (files
that `mrcnn propose` makes, named with --config.data.train_proposals and --config.data.val_proposals). Start from an
ImageNet ResNeXt-101 64x4d: name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 37.0, "mask AP50": 59.7, "mask AP75": 39.0, "box AP": 40.5, "box AP50": 63.0, "box AP75": 43.7}
SOURCE = "Mask R-CNN paper, table 8"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table8_updated", zoo.resnext(zoo.mask_rcnn(101), 64, 4))
    config = mask_rcnn.updated(config)
    config.model.rpn = None
    return base.finish(config, mode)
