"""Faster R-CNN, ResNet-101-FPN, COCO, 3x schedule (Ren et al., 2015; Detectron2 `faster_rcnn_R_101_FPN_3x`).

Start from an ImageNet ResNet-101 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 42.0}
SOURCE = "Detectron2 model zoo, 137851257"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/faster_rcnn_r101_fpn_3x", zoo.faster_rcnn(101))
    config.data.mask_size = 0
    config = base.schedule(config, 3)
    return base.finish(config, mode)
