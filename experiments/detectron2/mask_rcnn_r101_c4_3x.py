"""Mask R-CNN, ResNet-101-C4, COCO, 3x schedule (He et al., 2017; Detectron2 `mask_rcnn_R_101_C4_3x`).

Start from an ImageNet ResNet-101 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 42.6, "mask AP": 36.7}
SOURCE = "Detectron2 model zoo, 138363239"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_r101_c4_3x", zoo.c4(zoo.mask_rcnn(101)))
    config = base.schedule(config, 3)
    return base.finish(config, mode)
