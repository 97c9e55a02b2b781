"""The schedules of the Mask R-CNN paper (He et al., 2017)."""

from ml_collections import ConfigDict

from experiments.base import SHORT_SIDES
from experiments.recipes import coco


def baseline(config: ConfigDict) -> ConfigDict:
    """Section 3.1 of the Mask R-CNN paper: 160,000 steps of 16 images, the rate divided by 10 at 120,000.

    ResNeXts train with half the batch and half the rate. RPN and Mask R-CNN are trained together, which the paper does
    in tables 8 and 9 alone (0.6 mask AP better there); elsewhere its RPN came first, and apart. COCO's train2017 is the
    paper's trainval35k, val2017 its minival.
    """
    config = coco.detectron1(config)
    config.model.box.nms_threshold = 0.3
    pyramid = config.model.fpn is not None
    config.model.roi.num_samples = 512 if pyramid else 64
    config.model.rpn.post_nms = (2000, 1000 if pyramid else 300)
    config.train.update({"batch_size": 16 if config.model.backbone.groups == 1 else 8, "steps": 160_000})
    config.optimizer.milestones = (120_000,)
    return config


def updated(config: ConfigDict) -> ConfigDict:
    """The paper's updated baseline (appendix B): 180,000 steps, and an NMS threshold of 0.5."""
    config = baseline(config)
    config.train.steps = 180_000
    config.optimizer.milestones = (120_000, 160_000)
    config.model.box.nms_threshold = 0.5
    return config


def train_time_augmentation(config: ConfigDict) -> ConfigDict:
    """Short sides of 640 to 800 pixels, and 260,000 steps (appendix B)."""
    config.data.short_sides = SHORT_SIDES
    config.train.steps = 260_000
    config.optimizer.milestones = (200_000, 240_000)
    return config


def persons(config: ConfigDict, keypoints: bool = True) -> ConfigDict:
    """Section 5 of the Mask R-CNN paper: persons, short sides of 640 to 800 pixels, 90,000 steps of 16 images."""
    config = coco.persons(baseline(config), keypoints)
    config.data.short_sides = SHORT_SIDES
    config.model.box.nms_threshold = 0.5
    config.train.steps = 90_000
    config.optimizer.milestones = (60_000, 80_000)
    return config


def persons_updated(config: ConfigDict) -> ConfigDict:
    """Keypoints in the paper's appendix B: 130,000 steps, the rate divided by 10 at 100,000 and 120,000."""
    config = persons(config)
    config.train.steps = 130_000
    config.optimizer.milestones = (100_000, 120_000)
    return config


def cityscapes(config: ConfigDict, steps: int, drop: int) -> ConfigDict:
    """The paper's Cityscapes models (appendix A): all else as for COCO."""
    return coco.cityscapes(baseline(config), steps, drop)
