"""Fast R-CNN (Girshick, 2015) with a small network on drawn shapes; the proposals are those of R-CNN."""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import plain

PUBLISHED = {}
SOURCE = "no paper"
OURS = {"box AP": 41.0, "box AP50": 66.9}
LOG = "seed 0, jax 0.10.2, commit 300dce3, 11.4 minutes on two CPU cores, partly busy"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    model = plain.fast_rcnn("small")
    model.roi.update({"num_samples": 32, "positive_fraction": 0.5, "background_iou": 0.0})
    config = base.few_shapes(base.experiment("family/fast_rcnn", model), steps=2000)
    model.preprocess.update({"short_side": 192, "max_size": 192})
    config.data.update({"short_sides": (192,), "max_size": 192, "buckets": ((192, 192),)})
    return base.finish(config, mode)
