"""Mask R-CNN, ResNet-50-C4, COCO, 3x schedule (He et al., 2017; Detectron2 `mask_rcnn_R_50_C4_3x`).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 39.8, "mask AP": 34.4}
SOURCE = "Detectron2 model zoo, 137849525"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_r50_c4_3x", zoo.c4(zoo.mask_rcnn(50)))
    config = base.schedule(config, 3)
    return base.finish(config, mode)
