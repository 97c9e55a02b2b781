"""Faster R-CNN, VGG-16, VOC2007, four-step alternating training (Ren et al., 2015).

Each step is 40,000 steps of two images; the paper's RPNs saw as many, one at a time. Start from the network as trained
on ImageNet (--config.train.init).
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import voc
from mrcnn_jax.models import plain

PUBLISHED = {"mAP": 69.9}
SOURCE = "Faster R-CNN paper, tables 2 and 3"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("faster_rcnn/vgg16_voc07_alternating", plain.faster_rcnn("vgg16"))
    config = voc.girshick_sgd(voc.voc07(config), steps=40_000, drops=(30_000,))
    config.alternating = True
    return base.finish(config, mode)
