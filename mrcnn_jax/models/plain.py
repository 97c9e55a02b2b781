"""The family as it was before FPN, on plain networks, with the numbers of Girshick's and Ren's code (Caffe)."""

from typing import Literal

from ml_collections import ConfigDict

from mrcnn_jax.models import zoo

# RoIs are pooled to as many cells as the network's own last pooling made of an image, and pass its two FCs.
_CELLS = {"alexnet": 6, "zf": 6, "vgg_m": 6, "vgg16": 7, "small": 7}
_FCS = {"alexnet": (4096, 4096), "zf": (4096, 4096), "vgg_m": (4096, 1024), "vgg16": (4096, 4096), "small": (256, 256)}
# What a network classified, in pixels.
_INPUT = {"alexnet": 227, "vgg16": 224, "small": 64}
# Where fine-tuning begins: behind conv1, of VGG-16 behind conv2_2 (Fast R-CNN, section 4.5).
_FROZEN = {"alexnet": 1, "zf": 0, "vgg_m": 1, "vgg16": 2, "small": 0}
_CHANNELS = {"zf": 256, "vgg16": 512, "small": 128}


def faster_rcnn(network: Literal["zf", "vgg16", "small"] = "vgg16") -> ConfigDict:
    """Faster R-CNN (Ren et al., 2015): nine anchors a cell, 300 proposals, RoIPool."""
    config = fast_rcnn(network)
    config.rpn = zoo.faster_rcnn().rpn
    config.rpn.update({
        "channels": _CHANNELS[network], "sizes": ((128.0, 256.0, 512.0),), "beta": 1 / 9, "divide_by_slots": False,
        "pre_nms": (12000, 6000), "post_nms": (2000, 300), "min_size": 16.0, "train_outside": False,
    })  # fmt: skip
    config.roi.update({"num_samples": 128, "background_iou": 0.0})
    return config


def fast_rcnn(network: Literal["alexnet", "zf", "vgg_m", "vgg16", "small"] = "vgg16") -> ConfigDict:
    """Fast R-CNN (Girshick, 2015): one pass an image, RoIPool, softmax and box regressors trained together."""
    config = zoo.fast_rcnn()
    config.num_classes = 20
    config.preprocess.update({
        "short_side": 600, "max_size": 1000, "interpolation": "torchvision", "divisor": 1,
        "mean": (122.7717, 115.9465, 102.9801),
    })  # fmt: skip
    config.backbone = ConfigDict({"kind": network, "frozen_stages": _FROZEN[network]})
    config.fpn = None
    # Two images a batch, 64 RoIs of each; background is what overlaps an object by 0.1 to 0.5 (section 2.3).
    config.roi.update({"num_samples": 64, "background_iou": 0.1, "levels": (4,), "pooling": "pool"})
    config.box.update({
        "size": _CELLS[network], "fc_dims": _FCS[network], "dropout": 0.5, "beta": 1.0, "nms_threshold": 0.3,
    })  # fmt: skip
    return config


def rcnn(network: Literal["alexnet", "vgg16", "small"] = "alexnet") -> ConfigDict:
    """R-CNN (Girshick et al., 2014) as its network is fine-tuned: each region warped, with 16 pixels of context.

    Its softmax is what SVMs take the place of afterwards (`svms`). Box regressors read the last pooling.
    """
    config = fast_rcnn(network)
    # About the size of VOC's own images: what is warped need not be enlarged before.
    config.preprocess.update({"short_side": 375, "max_size": 500})
    config.backbone, config.trunk = None, ConfigDict({"kind": network})
    # The paper draws 32 positives and 96 background windows from all images; here 8 of each of 16 images.
    size = _INPUT[network]
    config.roi.update({
        "num_samples": 8, "background_iou": 0.0, "levels": (0,), "pooling": "align", "context": round(16 * size / 227),
    })  # fmt: skip
    config.box.update({"size": size, "pooled_deltas": True, "regression_weight": 0.0, "regress": False})
    return config


def svms(config: ConfigDict, regress: bool = True) -> ConfigDict:
    """The model whose class scores are the margins of SVMs, with box regressors or without."""
    config.box.update({"score": "margin", "score_threshold": -1.0, "regress": regress})
    return config
