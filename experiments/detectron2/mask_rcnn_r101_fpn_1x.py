"""Mask R-CNN, ResNet-101-FPN, COCO, 1x schedule (He et al., 2017; Detectron2 `mask_rcnn_R_101_FPN_1x`).

Start from an ImageNet ResNet-101 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {}
SOURCE = "Detectron2's recipe; it publishes the 3x schedule alone"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_r101_fpn_1x", zoo.mask_rcnn(101))
    config = base.schedule(config, 1)
    return base.finish(config, mode)
