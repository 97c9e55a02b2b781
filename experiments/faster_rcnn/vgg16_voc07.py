"""Faster R-CNN, VGG-16, VOC2007, RPN and detector trained together (Ren et al., 2015).

The schedule is that of py-faster-rcnn. Start from the network as trained on ImageNet (--config.train.init); what it
publishes is the alternating one.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import voc
from mrcnn_jax.models import plain

PUBLISHED = {}
SOURCE = "py-faster-rcnn, faster_rcnn_end2end"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("faster_rcnn/vgg16_voc07", plain.faster_rcnn("vgg16"))
    config = voc.girshick_sgd(voc.voc07(config), steps=70_000, drops=(50_000,))
    return base.finish(config, mode)
