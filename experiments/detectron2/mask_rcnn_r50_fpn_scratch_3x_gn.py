"""Mask R-CNN, ResNet-50-FPN, COCO, 3x schedule from random weights, group norm (He et al., 2019; Detectron2)."""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 39.9, "mask AP": 36.6}
SOURCE = "Detectron2 model zoo, from scratch"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_r50_fpn_scratch_3x_gn", zoo.normalised(zoo.mask_rcnn(50), "gn"))
    config.model.backbone.update({"stride_in_1x1": False, "frozen_stages": 0})
    config = base.schedule(config, 3)
    return base.finish(config, mode)
