"""Keypoint R-CNN, ResNet-50-FPN, COCO persons, 3x schedule (Detectron2 `keypoint_rcnn_R_50_FPN_3x`).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import coco
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 55.4, "keypoint AP": 65.5}
SOURCE = "Detectron2 model zoo, 137849621"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/keypoint_rcnn_r50_fpn_3x", zoo.keypoint_rcnn(50))
    config = coco.persons(config)
    config = base.schedule(config, 3)
    return base.finish(config, mode)
