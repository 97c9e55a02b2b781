"""From a model config to a model, and the configs that have a name.

A model config is a plain `ConfigDict` of values. Detectron2 and torchvision differ in two dozen of them: each
convention is a function here, so that public weights of both run unchanged.
"""

from ml_collections import ConfigDict

from mrcnn_jax.errors import UserError
from mrcnn_jax.models.box import BoxStage
from mrcnn_jax.models.mask import MaskTask
from mrcnn_jax.models.pixels import Pixels
from mrcnn_jax.models.pool import Pooler
from mrcnn_jax.models.rcnn import RCNN
from mrcnn_jax.models.rpn import RPN
from mrcnn_jax.nn.fpn import FPN
from mrcnn_jax.nn.heads import BoxHead, BoxPredictor, MaskHead, RPNHead
from mrcnn_jax.nn.resnet import ResNet


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
        "depth": depth, "width": 64, "norm": "frozen_bn", "norm_eps": 1e-5, "stride_in_1x1": depth > 34,
        "frozen_stages": 2, "zero_init_residual": False, "remat": False,
    })  # fmt: skip
    config.fpn = ConfigDict({"channels": 256, "norm": ""})
    config.rpn = ConfigDict({
        "channels": 256, "num_convs": 1,
        "sizes": ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)), "ratios": (0.5, 1.0, 2.0),
        "rounded": False, "stride_from_grid": False, "iou": (0.3, 0.7), "num_samples": 256, "positive_fraction": 0.5,
        "beta": 0.0, "divide_by_slots": True, "pre_nms": (2000, 1000), "post_nms": (1000, 1000), "nms_threshold": 0.7,
        "min_size": 0.0,
    })  # fmt: skip
    config.roi = ConfigDict({
        "num_samples": 512, "positive_fraction": 0.25, "iou": 0.5,
        "aligned": True, "sampling_ratio": 0, "level_eps": 1e-8, "canonical_size": 224.0,
    })  # fmt: skip
    config.box = ConfigDict({
        "num_convs": 0, "conv_dim": 256, "fc_dims": (1024, 1024), "norm": "", "class_agnostic": False, "size": 7,
        "weights": (10.0, 10.0, 5.0, 5.0), "beta": 0.0, "score_threshold": 0.05, "nms_threshold": 0.5,
        "max_detections": 100, "num_candidates": 2000, "min_size": 0.0,
    })  # fmt: skip
    config.mask = ConfigDict({
        "num_convs": 4, "dim": 256, "norm": "", "class_agnostic": False, "size": 14, "num_samples": 128,
        "soft_targets": False,
        "paste": "detectron2",
    })  # fmt: skip
    return config


def detectron2(config: ConfigDict) -> ConfigDict:
    """Detectron2's conventions, which are the defaults of `mask_rcnn`."""
    return config


def torchvision(config: ConfigDict) -> ConfigDict:
    """torchvision's conventions: `maskrcnn_resnet50_fpn` (v1 weights also set `backbone.norm_eps` to 0)."""
    config.preprocess.update({
        "rounding": "floor", "interpolation": "torchvision", "bgr": False,
        "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375),
    })  # fmt: skip
    config.backbone.stride_in_1x1 = False
    config.rpn.update({
        "rounded": True, "stride_from_grid": True, "beta": 1 / 9, "divide_by_slots": False, "post_nms": (2000, 1000),
        "min_size": 1e-3,
    })  # fmt: skip
    config.roi.update({"aligned": False, "sampling_ratio": 2, "level_eps": 1e-6})
    config.box.update({"beta": 1 / 9, "min_size": 1e-2})
    config.mask.update({"soft_targets": True, "paste": "torchvision"})
    return config


# The architectures that `create` and `--arch` know by name.
NAMED = {
    "mask_rcnn_r18_fpn": lambda: detectron2(mask_rcnn(18)),
    "mask_rcnn_r34_fpn": lambda: detectron2(mask_rcnn(34)),
    "mask_rcnn_r50_fpn": lambda: detectron2(mask_rcnn(50)),
    "mask_rcnn_r101_fpn": lambda: detectron2(mask_rcnn(101)),
    "torchvision_mask_rcnn_r50_fpn": lambda: torchvision(mask_rcnn(50)),
}


def named(name: str) -> ConfigDict:
    """The config of a named architecture. Raises `UserError` for a name that is not in `NAMED`."""
    if name not in NAMED:
        raise UserError(f"no architecture named '{name}': choose one of {', '.join(NAMED)}")
    return NAMED[name]()


def build(config: ConfigDict, axis_name: str | None = None) -> RCNN:
    """The network that a model config describes.

    `axis_name` is the mesh axis that synchronised BatchNorm reduces over.
    """
    c, dtype = config, config.dtype
    common = {"dtype": dtype, "axis_name": axis_name}
    preprocess = c.preprocess
    tasks = {}
    if c.get("mask") is not None:
        head = MaskHead(
            num_convs=c.mask.num_convs, dim=c.mask.dim, norm=c.mask.norm or None,
            num_classes=1 if c.mask.class_agnostic else c.num_classes, **common,
        )  # fmt: skip
        tasks["mask"] = MaskTask(
            head=head, size=c.mask.size, num_samples=c.mask.num_samples, soft_targets=c.mask.soft_targets
        )
    return RCNN(
        pixels=Pixels(
            mean=tuple(preprocess.mean), std=tuple(preprocess.std), bgr=preprocess.bgr, divisor=preprocess.divisor,
            canvas=preprocess.canvas, dtype=dtype,
        ),
        backbone=ResNet(**c.backbone, **common),
        fpn=FPN(channels=c.fpn.channels, norm=c.fpn.norm or None, **common),
        rpn=RPN(
            head=RPNHead(c.rpn.channels, c.rpn.num_convs, len(c.rpn.ratios) * len(c.rpn.sizes[0]), dtype),
            **{key: value for key, value in c.rpn.items() if key not in ("channels", "num_convs")},
        ),
        pooler=Pooler(
            aligned=c.roi.aligned, sampling_ratio=c.roi.sampling_ratio, level_eps=c.roi.level_eps,
            canonical_size=c.roi.canonical_size,
        ),
        box=BoxStage(
            head=BoxHead(
                num_convs=c.box.num_convs, conv_dim=c.box.conv_dim, fc_dims=tuple(c.box.fc_dims),
                norm=c.box.norm or None, **common,
            ),
            predictor=BoxPredictor(num_classes=c.num_classes, class_agnostic=c.box.class_agnostic, dtype=dtype),
            **{key: c.box[key] for key in (
                "size", "weights", "beta", "score_threshold", "nms_threshold", "max_detections", "num_candidates",
                "min_size",
            )},
        ),
        tasks=tasks,
        num_samples=c.roi.num_samples, positive_fraction=c.roi.positive_fraction, positive_iou=c.roi.iou,
    )  # fmt: skip


def frozen_prefixes(config: ConfigDict) -> tuple[str, ...]:
    """Parameters that `backbone.frozen_stages` keeps as they are: 1 is the stem, 2 the stem and res2, and so on."""
    stages = ("backbone/stem", "backbone/res2", "backbone/res3", "backbone/res4", "backbone/res5")
    return stages[: config.backbone.frozen_stages]
