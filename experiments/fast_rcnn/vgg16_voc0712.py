"""Fast R-CNN, model L (VGG-16), VOC2007 and VOC2012 (Girshick, 2015).

Start from the network as trained on ImageNet (--config.train.init); name selective search's windows with
--config.data.train_proposals and --config.data.val_proposals.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import voc
from mrcnn_jax.models import plain

PUBLISHED = {"mAP": 70.0}
SOURCE = "Fast R-CNN paper, table 1"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("fast_rcnn/vgg16_voc0712", plain.fast_rcnn("vgg16"))
    config = voc.fast_rcnn_voc0712(config)
    return base.finish(config, mode)
