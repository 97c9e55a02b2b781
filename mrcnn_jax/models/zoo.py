"""The family as configs: plain functions that make a model config or change one.

A model config is a plain `ConfigDict` of values, from which `build` makes the network. Detectron2 and torchvision
differ in two dozen of them: each convention is a function here, so that public weights of both run unchanged.
"""

from ml_collections import ConfigDict


def mask_rcnn(depth: int = 50) -> ConfigDict:
    """Mask R-CNN with a ResNet-FPN, as Detectron2's `mask_rcnn_R_50_FPN` with its MSRA ResNet."""
    config = ConfigDict()
    config.num_classes = 80
    config.dtype = "float32"
    config.preprocess = ConfigDict({
        "short_side": 800, "max_size": 1333, "rounding": "round", "interpolation": "pil",
        # In RGB order whatever the order in which the network reads its channels.
        "mean": (123.675, 116.28, 103.53), "std": (1.0, 1.0, 1.0), "bgr": True, "divisor": 32, "canvas": True,
    })  # fmt: skip
    config.backbone = ConfigDict({
        "depth": depth, "width": 64, "num_stages": 4, "dilated": False, "groups": 1, "base_width": 64,
        "norm": "frozen_bn", "norm_eps": 1e-5, "stride_in_1x1": depth > 34, "frozen_stages": 2,
        "zero_init_residual": False, "non_local": False, "remat": False,
    })  # fmt: skip
    config.fpn = ConfigDict({"channels": 256, "norm": ""})
    config.rpn = ConfigDict({
        "channels": 256, "num_convs": 1,
        "sizes": ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)), "ratios": (0.5, 1.0, 2.0),
        "rounded": False, "stride_from_grid": False, "iou": (0.3, 0.7), "num_samples": 256, "positive_fraction": 0.5,
        "beta": 0.0, "divide_by_slots": True, "pre_nms": (2000, 1000), "post_nms": (1000, 1000), "nms_threshold": 0.7,
        "min_size": 0.0, "train_outside": True,
    })  # fmt: skip
    config.roi = ConfigDict({
        "num_samples": 512, "positive_fraction": 0.25, "background_iou": 0.0, "levels": (2, 3, 4, 5),
        "pooling": "align", "aligned": True, "sampling_ratio": 0, "largest": False, "context": 0,
        "level_eps": 1e-8, "canonical_size": 224.0,
    })  # fmt: skip
    config.box = ConfigDict({
        "num_convs": 0, "conv_dim": 256, "fc_dims": (1024, 1024), "dropout": 0.0, "norm": "", "class_agnostic": False,
        "background_output": False, "pooled_deltas": False, "size": 7,
        # One IoU and one row of weights for each stage: over one is a cascade.
        "iou": (0.5,), "weights": ((10.0, 10.0, 5.0, 5.0),), "beta": 0.0,
        "regression_weight": 1.0, "regress": True, "score": "softmax",
        "score_threshold": 0.05, "nms_threshold": 0.5, "max_detections": 100, "num_candidates": 2000, "min_size": 0.0,
    })  # fmt: skip
    config.mask = ConfigDict({
        "num_convs": 4, "dim": 256, "fc_dims": (), "norm": "", "class_agnostic": False, "background_output": False,
        "size": 14, "num_samples": 128, "soft_targets": False, "softmax": False, "paste": "detectron2",
    })  # fmt: skip
    config.keypoint = None
    return config


def faster_rcnn(depth: int = 50) -> ConfigDict:
    """Faster R-CNN: boxes alone."""
    config = mask_rcnn(depth)
    config.mask = None
    return config


def fast_rcnn(depth: int = 50) -> ConfigDict:
    """Fast R-CNN: the proposals come with the images."""
    config = faster_rcnn(depth)
    config.rpn = None
    return config


def keypoint_rcnn(depth: int = 50) -> ConfigDict:
    """Keypoint R-CNN: persons and their 17 joints."""
    config = faster_rcnn(depth)
    config.num_classes = 1
    config.rpn.post_nms = (1500, 1000)
    config.box.beta = 0.5
    config.keypoint = ConfigDict({
        "num_keypoints": 17, "conv_dims": (512,) * 8, "size": 14, "num_samples": 128, "score": "probability"
    })  # fmt: skip
    return config


def rpn(config: ConfigDict) -> ConfigDict:
    """The RPN alone: 2,000 proposals of one class, object, as Detectron2's `rpn_R_50_FPN` and `rpn_R_50_C4`."""
    config.box = config.mask = config.keypoint = None
    config.num_classes = 1
    if config.fpn is None:
        # As many as in training.
        config.rpn.pre_nms = (config.rpn.pre_nms[0],) * 2
    config.rpn.post_nms = (config.rpn.post_nms[0], 2000)
    return config


def cascade(config: ConfigDict) -> ConfigDict:
    """Three box stages at rising IoU, their deltas the same for all classes (Cai & Vasconcelos, 2018)."""
    config.rpn.post_nms = (2000, 1000)
    config.box.update({
        "class_agnostic": True, "iou": (0.5, 0.6, 0.7),
        "weights": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
    })  # fmt: skip
    return config


def c4(config: ConfigDict) -> ConfigDict:
    """No pyramid: proposals and RoIs from res4, and res5 as the trunk of the heads (Ren et al., 2015)."""
    config = _single_map(config, channels=1024)
    config.backbone.num_stages = 3
    config.box.update({"size": 14, "fc_dims": ()})
    if config.mask is not None:
        config.mask.num_convs = 0
    return config


def dc5(config: ConfigDict) -> ConfigDict:
    """No pyramid: proposals and RoIs from a res5 whose convolutions are dilated so that it stays at stride 16."""
    config = _single_map(config, channels=2048)
    config.backbone.dilated = True
    return config


def c5(config: ConfigDict) -> ConfigDict:
    """No pyramid: proposals and RoIs from res5 as it is, at stride 32 (He et al., "Mask R-CNN", 2017, table 2d)."""
    config = _single_map(config, channels=2048)
    config.roi.levels = (5,)
    return config


def _single_map(config: ConfigDict, channels: int) -> ConfigDict:
    config.preprocess.divisor = 1
    config.fpn = None
    config.rpn.update({
        "channels": channels, "sizes": ((32.0, 64.0, 128.0, 256.0, 512.0),), "pre_nms": (12000, 6000),
        "post_nms": (2000, 1000),
    })  # fmt: skip
    config.roi.levels = (4,)
    return config


def resnext(config: ConfigDict, groups: int = 32, base_width: int = 8) -> ConfigDict:
    """ResNeXt in place of the ResNet, as FAIR trained it: 32 x 8d or, in the Mask R-CNN paper, 64 x 4d."""
    config.backbone.update({"groups": groups, "base_width": base_width, "stride_in_1x1": False})
    config.preprocess.std = (58.395, 57.12, 57.375)
    return config


def normalised(config: ConfigDict, norm: str) -> ConfigDict:
    """A trained norm ('gn' or 'bn') in every part, and the box head of 4 convolutions and 1 FC (Wu & He, 2018)."""
    config.backbone.norm = config.fpn.norm = config.box.norm = norm
    config.box.update({"num_convs": 4, "fc_dims": (1024,)})
    if config.mask is not None:
        config.mask.norm = norm
    return config


def lsj(config: ConfigDict) -> ConfigDict:
    """The network of the large-scale jitter baselines: synchronised BatchNorm and two convolutions in the RPN."""
    config = normalised(config, "bn")
    config.backbone.frozen_stages = 0
    config.rpn.num_convs = 2
    return config


def torchvision(config: ConfigDict) -> ConfigDict:
    """torchvision's conventions, as in `maskrcnn_resnet50_fpn`; `COCO_V1` weights also want `torchvision_v1`."""
    config.preprocess.update({
        "rounding": "floor", "interpolation": "torchvision", "bgr": False, "std": (58.395, 57.12, 57.375),
    })  # fmt: skip
    config.backbone.stride_in_1x1 = False
    config.rpn.update({
        "rounded": True, "stride_from_grid": True, "beta": 1 / 9, "divide_by_slots": False, "post_nms": (2000, 1000),
        "min_size": 1e-3,
    })  # fmt: skip
    config.roi.update({"aligned": False, "sampling_ratio": 2, "level_eps": 1e-6})
    config.box.update({"beta": 1 / 9, "min_size": 1e-2, "background_output": True})
    if config.mask is not None:
        config.mask.update({"soft_targets": True, "paste": "torchvision", "background_output": True})
    if config.keypoint is not None:
        config.keypoint.update({"score": "logit"})
    return config


def torchvision_v1(config: ConfigDict) -> ConfigDict:
    """With the eps of 0 that torchvision's published v1 detectors were trained with, and set when they are loaded."""
    config = torchvision(config)
    config.backbone.norm_eps = 0.0
    return config


def torchvision_v2(config: ConfigDict) -> ConfigDict:
    """`maskrcnn_resnet50_fpn_v2` and `fasterrcnn_resnet50_fpn_v2` (Li et al., 2021): BatchNorm and deeper heads."""
    config = normalised(torchvision(config), "bn")
    config.rpn.num_convs = 2
    return config


def frozen_prefixes(config: ConfigDict) -> tuple[str, ...]:
    """Parameters that `backbone.frozen_stages` keeps as they are: 1 is the stem, 2 the stem and res2, and so on.

    In a plain network stage 1 is conv1 or conv1_1 and conv1_2.
    """
    if config.backbone is None:
        return ()
    stages = ("stem", "res2", "res3", "res4", "res5")
    if "kind" in config.backbone:
        stages = tuple(f"conv{stage}" for stage in range(1, 6))
    return tuple(f"backbone/{stage}" for stage in stages[: config.backbone.frozen_stages])
