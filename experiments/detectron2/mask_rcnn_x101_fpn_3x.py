"""Mask R-CNN, ResNeXt-101-FPN, COCO, 3x schedule (He et al., 2017; Detectron2 `mask_rcnn_X_101_32x8d_FPN_3x`).

Start from an ImageNet ResNeXt-101 32x8d (FAIR): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 44.3, "mask AP": 39.5}
SOURCE = "Detectron2 model zoo, 139653917"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_x101_fpn_3x", zoo.resnext(zoo.mask_rcnn(101)))
    config = base.schedule(config, 3)
    return base.finish(config, mode)
