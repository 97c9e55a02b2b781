"""Mask R-CNN, ResNet-50-FPN, COCO, 1x schedule, as Detectron trained it.

Detectron2's `mask_rcnn_R_50_FPN_noaug_1x`. Images of one size, and Detectron's losses and RoIAlign. Start from an
ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import coco
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 37.8, "mask AP": 34.9}
SOURCE = "Detectron2, configs/Detectron1-Comparisons"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_r50_fpn_noaug_1x", zoo.mask_rcnn(50))
    config = base.schedule(coco.detectron1(config), 1)
    return base.finish(config, mode)
