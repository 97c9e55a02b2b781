"""Mask R-CNN, ResNet-50-FPN, COCO, 9x schedule from random weights, group norm (He et al., 2019)."""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import coco
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 43.7, "mask AP": 39.6}
SOURCE = "Detectron2 model zoo, from scratch"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_r50_fpn_scratch_9x_gn", zoo.normalised(zoo.mask_rcnn(50), "gn"))
    config = coco.scratch_9x(config)
    return base.finish(config, mode)
