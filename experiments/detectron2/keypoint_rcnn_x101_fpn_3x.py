"""Keypoint R-CNN, ResNeXt-101-FPN, COCO persons, 3x schedule (Detectron2 `keypoint_rcnn_X_101_32x8d_FPN_3x`).

Start from an ImageNet ResNeXt-101 32x8d (FAIR): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import coco
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 57.3, "keypoint AP": 66.0}
SOURCE = "Detectron2 model zoo, 139686956"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/keypoint_rcnn_x101_fpn_3x", zoo.resnext(zoo.keypoint_rcnn(101)))
    config = coco.persons(config)
    config = base.schedule(config, 3)
    return base.finish(config, mode)
