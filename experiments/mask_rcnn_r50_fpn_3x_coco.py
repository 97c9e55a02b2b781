"""Mask R-CNN, ResNet-50-FPN, COCO, 3x schedule (He et al. 2017; Detectron2 `mask_rcnn_R_50_FPN_3x`).

    mrcnn train --config=experiments/mask_rcnn_r50_fpn_3x_coco.py --config.data.root=COCO --workdir=runs/r50_fpn_3x

Not trained here yet. Detectron2 reports 41.0 box AP and 37.2 mask AP on val2017 after 270,000 steps of 16 images,
starting from an ImageNet ResNet-50 (MSRA): name one with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn_r50_fpn_3x_coco", zoo.mask_rcnn(depth=50))
    config = base.schedule(config, 3)
    return base.finish(config, mode)
