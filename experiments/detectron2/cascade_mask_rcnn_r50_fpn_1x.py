"""Cascade Mask R-CNN, ResNet-50-FPN, COCO, 1x schedule (Cai & Vasconcelos, 2018; Detectron2).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 42.1, "mask AP": 36.4}
SOURCE = "Detectron2 model zoo, 138602847"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/cascade_mask_rcnn_r50_fpn_1x", zoo.cascade(zoo.mask_rcnn(50)))
    config = base.schedule(config, 1)
    return base.finish(config, mode)
