"""Keypoint R-CNN, ResNet-101-FPN, COCO persons, 3x schedule (Detectron2 `keypoint_rcnn_R_101_FPN_3x`).

Start from an ImageNet ResNet-101 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import coco
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 56.4, "keypoint AP": 66.1}
SOURCE = "Detectron2 model zoo, 138363331"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/keypoint_rcnn_r101_fpn_3x", zoo.keypoint_rcnn(101))
    config = coco.persons(config)
    config = base.schedule(config, 3)
    return base.finish(config, mode)
