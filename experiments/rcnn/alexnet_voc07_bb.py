"""R-CNN, AlexNet, VOC2007, SVMs and box regressors (Girshick et al., 2014).

Start from the network as trained on ImageNet (--config.train.init); name selective search's windows with
--config.data.train_proposals and --config.data.val_proposals.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import voc
from mrcnn_jax.models import plain

PUBLISHED = {"mAP": 58.5}
SOURCE = "R-CNN's code, README"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("rcnn/alexnet_voc07_bb", plain.rcnn("alexnet"))
    config = voc.rcnn(config, regressors=True)
    return base.finish(config, mode)
