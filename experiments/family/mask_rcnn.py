"""Mask R-CNN (He et al., 2017) with a thin ResNet-18-FPN, the model of `experiments/shapes.py`, on the same images."""

from ml_collections import ConfigDict

from experiments import base, shapes

PUBLISHED = {}
SOURCE = "no paper"
OURS = {"box AP": 61.1, "box AP50": 82.1, "mask AP": 56.4, "mask AP50": 78.2}
LOG = "seed 0, jax 0.10.2, commit 52ab73d, 12.9 minutes on two CPU cores, partly busy"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    model = shapes.get_config().copy_and_resolve_references().unlock().model
    config = base.few_shapes(base.experiment("family/mask_rcnn", model), steps=2000)
    config.optimizer.learning_rate = 3e-3
    return base.finish(config, mode)
