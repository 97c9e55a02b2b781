"""Fast R-CNN, model L (VGG-16), VOC2007, trained to classify alone (Girshick, 2015, section 5.1).

Boxes stay as they were proposed. Start from the network as trained on ImageNet (--config.train.init); name selective
search's windows with --config.data.train_proposals and --config.data.val_proposals.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import voc
from mrcnn_jax.models import plain

PUBLISHED = {}
SOURCE = "Fast R-CNN paper, table 6"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("fast_rcnn/vgg16_voc07_no_regression", plain.fast_rcnn("vgg16"))
    config.model.box.update({"regression_weight": 0.0, "regress": False})
    config = voc.fast_rcnn_voc07(config)
    return base.finish(config, mode)
