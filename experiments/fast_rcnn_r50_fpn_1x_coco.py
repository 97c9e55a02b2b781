"""Fast R-CNN, ResNet-50-FPN, COCO, 1x schedule (Girshick 2015; Detectron2 `fast_rcnn_R_50_FPN_1x`).

    mrcnn train --config=experiments/fast_rcnn_r50_fpn_1x_coco.py --config.data.root=COCO --workdir=runs/fast_1x \\
        --config.data.train_proposals=TRAIN.pkl --config.data.val_proposals=VAL.pkl

Not trained here yet. Detectron2 reports 37.8 box AP on val2017 after 90,000 steps of 16 images, starting from an
ImageNet ResNet-50 (MSRA): name one with --config.train.init. Its proposals are the best 2,000 (1,000 on val2017) of an
RPN, `rpn_R_50_FPN_1x`; the files are in its format (`mrcnn_jax.data.proposals`).
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("fast_rcnn_r50_fpn_1x_coco", zoo.fast_rcnn(depth=50))
    config.data.mask_size = 0
    config = base.schedule(config, 1)
    return base.finish(config, mode)
