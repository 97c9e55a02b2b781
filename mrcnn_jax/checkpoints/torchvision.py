"""torchvision's names for our modules, and the older names that its published files still have."""

import re

from ml_collections import ConfigDict

from mrcnn_jax.errors import UserError


def module_name(modules: list[str], config: ConfigDict) -> str:
    """The module of a torchvision model for the path of one of ours, without the collection: ["fpn", "lateral2"]."""
    *_, layer = modules
    index = int(digits[0]) if (digits := re.search(r"\d+", layer)) else 0
    norm = 1 if "norm" in layer else 0
    match modules:
        case ["backbone", "stem", _]:
            return "backbone.body.bn1" if norm else "backbone.body.conv1"
        case [("backbone" | "trunk"), block, _]:
            stage, number = block.removeprefix("res").split("_")
            name = f"downsample.{norm}" if layer.startswith("shortcut") else layer.replace("norm", "bn")
            return f"backbone.body.layer{int(stage) - 1}.{number}.{name}"
        case ["fpn", _]:
            kind = "inner_blocks" if layer.startswith("lateral") else "layer_blocks"
            return f"backbone.fpn.{kind}.{index - 2}.{norm}"
        case ["rpn", "head", _]:
            names = {"objectness_logits": "cls_logits", "anchor_deltas": "bbox_pred"}
            return f"rpn.head.{names.get(layer, f'conv.{index - 1}.0')}"
        case ["box_0", "head", _] if layer.startswith("fc"):
            # With convolutions, those and a flattening come first in one sequence.
            convs = config.box.num_convs
            return f"roi_heads.box_head.{convs + 2 * index - 1 if convs else f'fc{index + 5}'}"
        case ["box_0", "head", _]:
            return f"roi_heads.box_head.{index - 1}.{norm}"
        case ["box_0", "predictor", _]:
            return f"roi_heads.box_predictor.{layer}"
        case ["tasks_mask", "head", "deconv"]:
            return "roi_heads.mask_predictor.conv5_mask"
        case ["tasks_mask", "head", "predictor"]:
            return "roi_heads.mask_predictor.mask_fcn_logits"
        case ["tasks_mask", "head", _]:
            return f"roi_heads.mask_head.{index - 1}.{norm}"
        case ["tasks_keypoint", "head", "score_lowres"]:
            return "roi_heads.keypoint_predictor.kps_score_lowres"
        case ["tasks_keypoint", "head", _]:
            # Every convolution is followed by its ReLU.
            return f"roi_heads.keypoint_head.{2 * (index - 1)}"
    raise UserError(f"torchvision has no such model: it knows no {'/'.join(modules)}")


# The names before 2022, still in the published v1 files; and a classifier's, whose trunk is that of a detector.
_OLD = (
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"rpn\.head\.conv\.(weight|bias)"), r"rpn.head.conv.0.0.\1"),
    (re.compile(r"(roi_heads\.mask_head\.)mask_fcn(\d)(\..*)"), lambda m: f"{m[1]}{int(m[2]) - 1}.0{m[3]}"),
    (re.compile(r"((?:conv1|bn1|layer[1-4])\..*)"), r"backbone.body.\1"),
    # A convolution of a ResNet has a bias where its norm was folded into it.
    (re.compile(r"(backbone\.body\.(?:.*\.)?)conv(\d)\.bias"), r"\1bn\2.bias"),
    (re.compile(r"(backbone\.body\..*\.downsample)(?:\.0)?\.bias"), r"\1.1.bias"),
    (re.compile(r"(backbone\.body\..*\.downsample)\.weight"), r"\1.0.weight"),
)
_DROPPED = re.compile(r"fc\.(weight|bias)")


def current_name(key: str) -> str | None:
    """The key in today's torchvision; None for what is no part of a detector, as a classifier's last layer."""
    if _DROPPED.fullmatch(key):
        return None
    for pattern, replacement in _OLD:
        key = pattern.sub(replacement, key) if pattern.fullmatch(key) else key
    return key
