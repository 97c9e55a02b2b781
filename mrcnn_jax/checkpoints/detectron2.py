"""Detectron2's names for our modules, and Caffe2's, which the ImageNet weights that it starts from still have."""

import re

from ml_collections import ConfigDict

from mrcnn_jax.errors import UserError


def module_name(modules: list[str], config: ConfigDict) -> str:
    """The module of a Detectron2 model for the path of one of ours, without the collection: ["fpn", "lateral2"]."""
    backbone = "backbone" if config.fpn is None else "backbone.bottom_up"
    *_, layer = modules
    name = _under_its_convolution(layer)
    match modules:
        case ["backbone", "stem", _]:
            return f"{backbone}.stem.{name}"
        case ["backbone", block, _]:
            return f"{backbone}.{block.replace('_', '.')}.{name}"
        case ["trunk", block, _]:
            return f"roi_heads.{block.replace('_', '.')}.{name}"
        case ["fpn", _]:
            return f"backbone.fpn_{name}"
        case ["rpn", "head", _]:
            if layer.startswith("conv"):
                name = "conv" if config.rpn.num_convs == 1 else f"conv.conv{int(layer[4:]) - 1}"
            return f"proposal_generator.rpn_head.{name}"
        case [box, ("head" | "predictor") as part, _] if box.startswith("box_"):
            stage = f".{box[4:]}" if len(config.box.iou) > 1 else ""
            return f"roi_heads.box_{part}{stage}.{name}"
        case ["tasks_mask", "head", _]:
            return f"roi_heads.mask_head.{re.sub('^conv', 'mask_fcn', name)}"
        case ["tasks_keypoint", "head", _]:
            return f"roi_heads.keypoint_head.{re.sub('^conv', 'conv_fcn', name)}"
    raise UserError(f"Detectron2 has no such model: it knows no {'/'.join(modules)}")


def _under_its_convolution(layer: str) -> str:
    """A norm is part of the convolution before it: norm2 is conv2.norm, and shortcut_norm is shortcut.norm."""
    if layer == "norm":
        return "conv1.norm"
    if match := re.fullmatch(r"norm(\d)", layer):
        return f"conv{match[1]}.norm"
    return re.sub("_norm$", ".norm", layer)


# What files hold beside a detector's weights: anchors and pixels, which are config, and a classifier's last layer.
_DROPPED = re.compile(
    r"pixel_(mean|std)|(.*\.)?(cell_anchors\.\d+|anchor_generator\..*)|(linear|fc)\.(weight|bias)|.*_momentum|lr"
)
# Caffe2's names of a ResNet, as in MSRA's R-50.pkl: res2_0_branch2a_bn_s, res_conv1_bn_b, conv1_w, fc1000_w.
_CAFFE2 = re.compile(r"(?:res_)?(conv1|res\d_\d+_branch(?:1|2a|2b|2c)|fc1000|pred)(_bn|_gn)?_(w|b|s|rm|riv)")
_BRANCH = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_CAFFE2_LEAF = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var"}


def is_caffe2(key: str) -> bool:
    """Whether this is one of Caffe2's names of a ResNet."""
    return _CAFFE2.fullmatch(key) is not None


def current_name(key: str) -> str | None:
    """The key in today's Detectron2; None for what is no weight of a detector.

    An ImageNet classifier's trunk gets the name that it has in a model with a pyramid.
    """
    name = _from_caffe2(key)
    if _DROPPED.fullmatch(name):
        return None
    return f"backbone.bottom_up.{name}" if re.match(r"(stem|res\d)\.", name) else name


def _from_caffe2(key: str) -> str:
    match = _CAFFE2.fullmatch(key)
    if not match:
        return key
    module, norm, leaf = match.groups()
    if module in ("fc1000", "pred"):
        layer = "linear"
    elif module == "conv1":
        layer = "stem.conv1"
    else:
        stage, block, branch = module.split("_")
        layer = f"{stage}.{block}.{_BRANCH[branch.removeprefix('branch')]}"
    return f"{layer}{'.norm' if norm else ''}.{_CAFFE2_LEAF[leaf]}"
