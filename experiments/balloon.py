"""Mask R-CNN R18-FPN on the balloon data set (61 training images, one class), at a size that suits a laptop.

    mrcnn train --config=experiments/balloon.py --config.data.root=BALLOON --workdir=runs/balloon

Start from an ImageNet ResNet-18, named with --config.train.init. From torchvision's, folded into an .npz, it gave box
AP 0.432 and mask AP 0.411 (AP50 0.586 and 0.565) on the 13 validation images, and 0.664 and 0.595 (AP50 0.876 and
0.824) on those that it was trained on: seed 0, jax 0.10.2, commit 30db833, 33 minutes on two CPU cores that other work
used too. At this size small balloons are missed (box AP 0.06 of the small ones, 0.79 of the large).
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    model = zoo.torchvision(zoo.mask_rcnn(depth=18))
    model.num_classes = 1
    model.preprocess.update({"short_side": 256, "max_size": 384})
    model.rpn.update({
        "channels": 128, "sizes": ((12.0,), (24.0,), (48.0,), (96.0,), (192.0,)), "num_samples": 128,
        "pre_nms": (500, 300), "post_nms": (250, 150),
    })  # fmt: skip
    model.fpn.channels = 128
    model.roi.update({"num_samples": 64, "canonical_size": 112.0})
    model.box.fc_dims = (512, 512)
    model.mask.update({"num_convs": 2, "dim": 128})
    config = base.experiment("balloon", model)
    config.data.update({
        "short_sides": (224, 256, 288), "max_size": 384, "buckets": ((288, 384), (384, 288)), "max_objects": 50,
        "num_workers": 0,
    })  # fmt: skip
    config.train.update({"batch_size": 4, "steps": 600, "eval_every": 600, "save_every": 100, "cpu_devices": 2})
    config.optimizer.update({"learning_rate": 0.04, "milestones": (450, 540), "warmup_steps": 50, "clip_norm": 10.0})
    config.eval.update({"batch_size": 4, "num_workers": 0})
    return base.finish(config, mode)
