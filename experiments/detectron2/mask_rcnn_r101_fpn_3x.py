"""Mask R-CNN, ResNet-101-FPN, COCO, 3x schedule (He et al., 2017; Detectron2 `mask_rcnn_R_101_FPN_3x`).

Start from an ImageNet ResNet-101 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 42.9, "mask AP": 38.6}
SOURCE = "Detectron2 model zoo, 138205316"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_r101_fpn_3x", zoo.mask_rcnn(101))
    config = base.schedule(config, 3)
    return base.finish(config, mode)
