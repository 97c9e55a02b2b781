"""Mask R-CNN, ResNet-101-DC5, COCO, 3x schedule (He et al., 2017; Detectron2 `mask_rcnn_R_101_DC5_3x`).

Start from an ImageNet ResNet-101 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 41.9, "mask AP": 37.3}
SOURCE = "Detectron2 model zoo, 138363294"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_r101_dc5_3x", zoo.dc5(zoo.mask_rcnn(101)))
    config = base.schedule(config, 3)
    return base.finish(config, mode)
