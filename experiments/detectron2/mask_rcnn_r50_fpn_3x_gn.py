"""Mask R-CNN, ResNet-50-FPN, COCO, 3x schedule, group norm (Wu & He, 2018; Detectron2).

Start from an ImageNet ResNet-50 with group norm (FAIR): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 42.6, "mask AP": 38.6}
SOURCE = "Detectron2 model zoo, normalisation"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_r50_fpn_3x_gn", zoo.normalised(zoo.mask_rcnn(50), "gn"))
    config.model.backbone.stride_in_1x1 = False
    config = base.schedule(config, 3)
    return base.finish(config, mode)
