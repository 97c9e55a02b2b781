"""Fast R-CNN, model M (VGG_CNN_M_1024), VOC2007, SVMs in place of the softmax (Girshick, 2015).

The SVMs are fitted to the trained network, which keeps its own box regression. Start from the network as trained on
ImageNet (--config.train.init); name selective search's windows with --config.data.train_proposals and
--config.data.val_proposals.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import voc
from mrcnn_jax.models import plain

PUBLISHED = {"mAP": 58.7}
SOURCE = "Fast R-CNN paper, table 8: SVM"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("fast_rcnn/vgg_m_voc07_svm", plain.fast_rcnn("vgg_m"))
    config = voc.fast_rcnn_voc07(config)
    config.svm.update({"fit": True, "regressors": False})
    return base.finish(config, mode)
