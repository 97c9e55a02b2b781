"""Faster R-CNN (Ren et al., 2015) with a small network on drawn shapes: nine anchors a cell, trained together."""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import plain

PUBLISHED = {}
SOURCE = "no paper"
OURS = {"box AP": 27.5, "box AP50": 56.4}
LOG = "seed 0, jax 0.10.2, commit 49ce3a8, 16.1 minutes on two CPU cores, partly busy"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    model = plain.faster_rcnn("small")
    model.rpn.update({
        "sizes": ((40.0, 80.0, 128.0),), "num_samples": 64, "pre_nms": (400, 400), "post_nms": (100, 100),
        "train_outside": True,
    })  # fmt: skip
    model.roi.update({"num_samples": 32, "positive_fraction": 0.5})
    config = base.few_shapes(base.experiment("family/faster_rcnn", model), steps=2000)
    model.preprocess.update({"short_side": 192, "max_size": 192})
    config.data.update({"short_sides": (192,), "max_size": 192, "buckets": ((192, 192),)})
    return base.finish(config, mode)
