"""COCO's persons, Cityscapes in COCO's form, and Detectron's conventions, each for several tables."""

from ml_collections import ConfigDict


def persons(config: ConfigDict, keypoints: bool = True) -> ConfigDict:
    """COCO's persons, from the files that also have their keypoints; of images, those where some are labelled."""
    config.data.update({
        "train_images": "train2017", "train_annotations": "annotations/person_keypoints_train2017.json",
        "val_images": "val2017", "val_annotations": "annotations/person_keypoints_val2017.json",
        "keypoints": keypoints, "mask_size": 0 if config.model.mask is None else 112,
    })  # fmt: skip
    config.model.num_classes = 1
    return config


def cityscapes(config: ConfigDict, steps: int, drop: int) -> ConfigDict:
    """Cityscapes' fine annotations in batches of 8 (appendix A): short sides of 800 to 1024 pixels, 1024 for inference.

    `config.data.root` holds the JSON files that `scripts/cityscapes_to_coco.py` makes.
    """
    config.model.num_classes = 8
    config.model.preprocess.update({"short_side": 1024, "max_size": 2048})
    config.data.update({
        "short_sides": (800, 832, 864, 896, 928, 960, 992, 1024), "max_size": 2048, "buckets": ((1024, 2048),),
    })  # fmt: skip
    config.eval.metric = "cityscapes"
    config.train.update({"batch_size": 8, "steps": steps, "eval_every": steps // 4, "save_every": steps // 4})
    config.optimizer.milestones = (drop,)
    return config


def detectron1(config: ConfigDict) -> ConfigDict:
    """The conventions of Detectron, which the Mask R-CNN paper's models were trained with.

    Images of one size, smooth L1 for boxes, four samples a bin, and a RoIAlign that does not shift by half a pixel.
    """
    config.data.short_sides = (800,)
    config.model.roi.update({"aligned": False, "sampling_ratio": 2})
    if config.model.rpn is not None:
        config.model.rpn.beta = 1 / 9
    config.model.box.beta = 1.0
    return config


def scratch_9x(config: ConfigDict) -> ConfigDict:
    """Nine times the 1x schedule from random weights, in batches of 64 (He et al., "Rethinking ImageNet", 2019)."""
    config.model.preprocess.std = (58.395, 57.12, 57.375)
    config.model.backbone.update({"stride_in_1x1": False, "frozen_stages": 0})
    config.train.update({"batch_size": 64, "steps": 202_500})
    config.optimizer.update({"learning_rate": 0.08, "base_batch_size": 64, "milestones": (187_500, 197_500)})
    return config
