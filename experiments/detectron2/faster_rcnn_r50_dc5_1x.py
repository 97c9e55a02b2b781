"""Faster R-CNN, ResNet-50-DC5, COCO, 1x schedule (Ren et al., 2015; Detectron2 `faster_rcnn_R_50_DC5_1x`).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 37.3}
SOURCE = "Detectron2 model zoo, 137847829"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/faster_rcnn_r50_dc5_1x", zoo.dc5(zoo.faster_rcnn(50)))
    config.data.mask_size = 0
    config = base.schedule(config, 1)
    return base.finish(config, mode)
