"""Fast R-CNN, model M (VGG_CNN_M_1024), VOC2007 and VOC2012 (Girshick, 2015).

The paper trains this one on VOC2007 alone. Start from the network as trained on ImageNet (--config.train.init); name
selective search's windows with --config.data.train_proposals and --config.data.val_proposals.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import voc
from mrcnn_jax.models import plain

PUBLISHED = {}
SOURCE = "the recipe of Fast R-CNN, section 5.3"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("fast_rcnn/vgg_m_voc0712", plain.fast_rcnn("vgg_m"))
    config = voc.fast_rcnn_voc0712(config)
    return base.finish(config, mode)
