"""RPN alone, ResNet-50-FPN, COCO, 1x schedule (Ren et al., 2015; Detectron2 `rpn_R_50_FPN_1x`).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"AR1000": 58.0}
SOURCE = "Detectron2 model zoo, 137258492"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/rpn_r50_fpn_1x", zoo.rpn(zoo.faster_rcnn(50)))
    config.data.mask_size = 0
    config = base.schedule(config, 1)
    return base.finish(config, mode)
