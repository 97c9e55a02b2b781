"""Mask R-CNN, ResNet-50-FPN, Cityscapes, from COCO (Detectron2 `Cityscapes/mask_rcnn_R_50_FPN`).

Start from mask_rcnn_r50_fpn_3x.py's run or Detectron2's model of that name: name it with --config.train.init. The data
set's JSON files are made by scripts/cityscapes_to_coco.py.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import coco
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 36.5}
SOURCE = "Detectron2 model zoo, 142423278"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_r50_fpn_cityscapes", zoo.mask_rcnn(50))
    config = coco.cityscapes(config, steps=24_000, drop=18_000)
    return base.finish(config, mode)
