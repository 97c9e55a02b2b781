"""RPN alone, ResNet-50-C4, COCO, 1x schedule (Ren et al., 2015; Detectron2 `rpn_R_50_C4_1x`).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"AR1000": 51.6}
SOURCE = "Detectron2 model zoo, 137258005"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/rpn_r50_c4_1x", zoo.rpn(zoo.c4(zoo.faster_rcnn(50))))
    config.data.mask_size = 0
    config.model.rpn.pre_nms = (12000, 12000)
    config = base.schedule(config, 1)
    return base.finish(config, mode)
