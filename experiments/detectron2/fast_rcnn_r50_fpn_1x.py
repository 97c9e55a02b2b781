"""Fast R-CNN, ResNet-50-FPN, COCO, 1x schedule (Girshick, 2015; Detectron2 `fast_rcnn_R_50_FPN_1x`).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init. Its proposals are the best 2,000 (1,000 on
val2017) of rpn_r50_fpn_1x.py, in files of Detectron2's format or of `mrcnn propose`: name them with
--config.data.train_proposals and --config.data.val_proposals.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 37.8}
SOURCE = "Detectron2 model zoo, 137635226"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/fast_rcnn_r50_fpn_1x", zoo.fast_rcnn(50))
    config.data.mask_size = 0
    config = base.schedule(config, 1)
    return base.finish(config, mode)
