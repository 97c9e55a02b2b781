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
    model = zoo.mask_rcnn(depth=50)
    model.preprocess.update({"std": (58.395, 57.12, 57.375), "bgr": False})
    model.backbone.update({"norm": "bn", "stride_in_1x1": False, "frozen_stages": 0})
    model.fpn.norm = "bn"
    model.rpn.num_convs = 2
    model.box.update({"num_convs": 4, "fc_dims": (1024,), "norm": "bn"})
    model.mask.norm = "bn"
    config = base.experiment("mask_rcnn_r50_fpn_lsj_coco", model)
    config = base.large_scale_jitter(config, epochs=100)
    return base.finish(config, mode)
