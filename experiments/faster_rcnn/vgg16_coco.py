"""Faster R-CNN, VGG-16, COCO, RPN and detector trained together (Ren et al., 2015).

Anchors of 64 pixels are added, since COCO's objects are smaller. Start from the network as trained on ImageNet
(--config.train.init); the figures are those of py-faster-rcnn on test-dev2015, trained on train2014.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import voc
from mrcnn_jax.models import plain

PUBLISHED = {"box AP (test-dev)": 24.2, "box AP50 (test-dev)": 45.3, "box AP75 (test-dev)": 23.5}
SOURCE = "py-faster-rcnn, faster_rcnn_end2end"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("faster_rcnn/vgg16_coco", plain.faster_rcnn("vgg16"))
    config.model.num_classes = 80
    config.model.rpn.sizes = ((64.0, 128.0, 256.0, 512.0),)
    config = voc.girshick_sgd(config, steps=490_000, drops=(350_000,))
    config.data.update({
        "mask_size": 0, "short_sides": (600,), "max_size": 1000, "buckets": ((608, 1008), (1008, 608)),
    })  # fmt: skip
    return base.finish(config, mode)
