"""Mask R-CNN, ResNet-50-FPN, COCO, 3x schedule, synchronised BatchNorm (Peng et al., 2018; Detectron2).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 41.9, "mask AP": 37.8}
SOURCE = "Detectron2 model zoo, normalisation"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_r50_fpn_3x_syncbn", zoo.normalised(zoo.mask_rcnn(50), "bn"))
    config = base.schedule(config, 3)
    return base.finish(config, mode)
