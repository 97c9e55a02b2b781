"""Mask R-CNN, ResNet-101-FPN, COCO, 1x schedule (He et al. 2017; Detectron2 `mask_rcnn_R_101_FPN_1x`).

    mrcnn train --config=experiments/mask_rcnn_r101_fpn_1x_coco.py --config.data.root=COCO --workdir=runs/r101_fpn_1x

Not trained here yet, and Detectron2 publishes this model for the 3x schedule alone (42.9 box AP, 38.6 mask AP on
val2017). Start from an ImageNet ResNet-101 (MSRA): name one with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn_r101_fpn_1x_coco", zoo.mask_rcnn(depth=101))
    config = base.schedule(config, 1)
    return base.finish(config, mode)
