"""R-CNN (Girshick et al., 2014) with a small network on drawn shapes: every region a picture of 64 x 64 pixels.

Selective search makes the proposals first:

    mrcnn propose --config=experiments/family/rcnn.py --split=train --method=selective_search_fast --out=train.pkl
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import plain

PUBLISHED = {}
SOURCE = "no paper"
OURS = {"box AP": 53.2, "box AP50": 67.0}
LOG = "seed 0, jax 0.10.2, network of 300dce3, fits of ecba272, 22.9 minutes on two CPU cores, partly busy"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    model = plain.rcnn("small")
    model.roi.update({"num_samples": 16, "positive_fraction": 0.5})
    config = base.few_shapes(base.experiment("family/rcnn", model), steps=2000)
    config.svm.update({"fit": True, "c": 1e-2})
    return base.finish(config, mode)
