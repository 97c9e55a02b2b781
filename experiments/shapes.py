"""Mask R-CNN with a thin ResNet on drawn shapes: the demo, and the quickest way to see the whole thing work.

    mrcnn train --config=experiments/shapes.py --workdir=runs/shapes

From scratch, 128 x 128 pixels, 8 classes told apart by shape alone.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    model = zoo.mask_rcnn(depth=18)
    model.num_classes = 8
    model.preprocess.update({"short_side": 128, "max_size": 128, "std": (58.395, 57.12, 57.375), "bgr": False})
    model.backbone.update({"width": 32, "norm": "gn", "frozen_stages": 0})
    model.fpn.channels = 64
    model.rpn.update({
        "channels": 64, "sizes": ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,)), "num_samples": 64,
        "pre_nms": (200, 200), "post_nms": (100, 100),
    })  # fmt: skip
    model.roi.update({"num_samples": 64, "canonical_size": 56.0, "sampling_ratio": 2})
    model.box.update({"fc_dims": (256, 256), "num_candidates": 400})
    model.mask.update({"num_convs": 2, "dim": 64})

    config = base.experiment("shapes", model)
    config.data.update({
        "kind": "shapes", "num_train": 20_000, "num_val": 400, "short_sides": (128,), "max_size": 128,
        "buckets": ((128, 128),), "max_objects": 16, "num_workers": 0,
    })  # fmt: skip
    config.train.update({"batch_size": 8, "steps": 4000, "eval_every": 4000, "save_every": 1000})
    config.optimizer.update({
        "name": "adamw", "learning_rate": 1e-3, "base_batch_size": 8, "weight_decay": 0.05, "schedule": "cosine",
        "warmup_steps": 200, "clip_norm": 1.0,
    })  # fmt: skip
    config.eval.update({"batch_size": 8, "num_workers": 0})
    return base.finish(config, mode)
