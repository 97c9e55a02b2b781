"""Faster R-CNN, VGG-16, VOC2007 and VOC2012, RPN and detector trained together (Ren et al., 2015).

The schedule is that of R-FCN and tf-faster-rcnn, for three times VOC2007's images. Start from the network as trained on
ImageNet (--config.train.init); what the paper publishes is the alternating one.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import voc
from mrcnn_jax.models import plain

PUBLISHED = {}
SOURCE = "the schedule of tf-faster-rcnn"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("faster_rcnn/vgg16_voc0712", plain.faster_rcnn("vgg16"))
    config = voc.girshick_sgd(voc.voc0712(config), steps=110_000, drops=(80_000,))
    return base.finish(config, mode)
