"""Mask R-CNN, ResNet-50-FPN, COCO, a mask head of three hidden FCs (He et al., 2017, table 2e).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 31.5, "mask AP50": 54.0, "mask AP75": 32.6}
SOURCE = "Mask R-CNN paper, table 2e"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table2e_mlp_3fc", zoo.mask_rcnn(50))
    config = mask_rcnn.baseline(config)
    config.model.mask.fc_dims = (1024, 1024, 1024)
    return base.finish(config, mode)
