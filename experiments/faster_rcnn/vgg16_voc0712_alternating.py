"""Faster R-CNN, VGG-16, VOC2007 and VOC2012, four-step alternating training (Ren et al., 2015).

Each step is 60,000 steps of two images. Start from the network as trained on ImageNet (--config.train.init).
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import voc
from mrcnn_jax.models import plain

PUBLISHED = {"mAP": 73.2}
SOURCE = "Faster R-CNN paper, table 3"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("faster_rcnn/vgg16_voc0712_alternating", plain.faster_rcnn("vgg16"))
    config = voc.girshick_sgd(voc.voc0712(config), steps=60_000, drops=(30_000,))
    config.alternating = True
    return base.finish(config, mode)
