"""Mask R-CNN, ResNet-50-FPN, COCO, 100 epochs of large-scale jitter (Ghiasi et al. 2021).

    mrcnn train --config=experiments/mask_rcnn_r50_fpn_lsj_coco.py --config.data.root=COCO --workdir=runs/r50_fpn_lsj

Not trained here yet. Detectron2 reports 44.6 box AP and 40.3 mask AP on val2017 for its `mask_rcnn_R_50_FPN_100ep_LSJ`,
after 100 epochs in batches of 64 on 1024 x 1024 crops, from random weights. BatchNorm is synchronised everywhere, the
box head has 4 convolutions and 1 FC, and the RPN has two convolutions.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn_r50_fpn_lsj_coco", zoo.lsj(zoo.mask_rcnn(depth=50)))
    config = base.large_scale_jitter(config, epochs=100)
    return base.finish(config, mode)
