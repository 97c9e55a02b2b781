"""The architectures that `create` and `--arch` know by name."""

from collections.abc import Callable

from ml_collections import ConfigDict

from mrcnn_jax.errors import UserError
from mrcnn_jax.models import plain, zoo

NAMED: dict[str, Callable[[], ConfigDict]] = {
    "rcnn_alexnet": lambda: plain.rcnn("alexnet"),
    "rcnn_vgg16": lambda: plain.rcnn("vgg16"),
    "fast_rcnn_alexnet": lambda: plain.fast_rcnn("alexnet"),
    "fast_rcnn_vgg_m": lambda: plain.fast_rcnn("vgg_m"),
    "fast_rcnn_vgg16": lambda: plain.fast_rcnn("vgg16"),
    "faster_rcnn_zf": lambda: plain.faster_rcnn("zf"),
    "faster_rcnn_vgg16": lambda: plain.faster_rcnn("vgg16"),
    "rpn_r50_fpn": lambda: zoo.rpn(zoo.faster_rcnn(50)),
    "rpn_r50_c4": lambda: zoo.rpn(zoo.c4(zoo.faster_rcnn(50))),
    "fast_rcnn_r50_fpn": lambda: zoo.fast_rcnn(50),
    "faster_rcnn_r50_fpn": lambda: zoo.faster_rcnn(50),
    "faster_rcnn_r101_fpn": lambda: zoo.faster_rcnn(101),
    "faster_rcnn_x101_fpn": lambda: zoo.resnext(zoo.faster_rcnn(101)),
    "faster_rcnn_r50_c4": lambda: zoo.c4(zoo.faster_rcnn(50)),
    "faster_rcnn_r101_c4": lambda: zoo.c4(zoo.faster_rcnn(101)),
    "faster_rcnn_r50_dc5": lambda: zoo.dc5(zoo.faster_rcnn(50)),
    "faster_rcnn_r101_dc5": lambda: zoo.dc5(zoo.faster_rcnn(101)),
    "mask_rcnn_r18_fpn": lambda: zoo.mask_rcnn(18),
    "mask_rcnn_r34_fpn": lambda: zoo.mask_rcnn(34),
    "mask_rcnn_r50_fpn": lambda: zoo.mask_rcnn(50),
    "mask_rcnn_r101_fpn": lambda: zoo.mask_rcnn(101),
    "mask_rcnn_x101_fpn": lambda: zoo.resnext(zoo.mask_rcnn(101)),
    "mask_rcnn_r50_c4": lambda: zoo.c4(zoo.mask_rcnn(50)),
    "mask_rcnn_r101_c4": lambda: zoo.c4(zoo.mask_rcnn(101)),
    "mask_rcnn_r50_dc5": lambda: zoo.dc5(zoo.mask_rcnn(50)),
    "mask_rcnn_r101_dc5": lambda: zoo.dc5(zoo.mask_rcnn(101)),
    "mask_rcnn_r50_c5": lambda: zoo.c5(zoo.mask_rcnn(50)),
    "mask_rcnn_r50_fpn_gn": lambda: _strides_in_3x3(zoo.normalised(zoo.mask_rcnn(50), "gn")),
    "mask_rcnn_r50_fpn_syncbn": lambda: zoo.normalised(zoo.mask_rcnn(50), "bn"),
    "mask_rcnn_r50_fpn_lsj": lambda: zoo.lsj(zoo.mask_rcnn(50)),
    "mask_rcnn_r101_fpn_lsj": lambda: zoo.lsj(zoo.mask_rcnn(101)),
    "cascade_mask_rcnn_r50_fpn": lambda: zoo.cascade(zoo.mask_rcnn(50)),
    "keypoint_rcnn_r50_fpn": lambda: zoo.keypoint_rcnn(50),
    "keypoint_rcnn_r101_fpn": lambda: zoo.keypoint_rcnn(101),
    "keypoint_rcnn_x101_fpn": lambda: zoo.resnext(zoo.keypoint_rcnn(101)),
    "torchvision_faster_rcnn_r50_fpn": lambda: _coco_ids(zoo.torchvision_v1(zoo.faster_rcnn(50))),
    "torchvision_mask_rcnn_r50_fpn": lambda: _coco_ids(zoo.torchvision_v1(zoo.mask_rcnn(50))),
    "torchvision_keypoint_rcnn_r50_fpn": lambda: zoo.torchvision_v1(zoo.keypoint_rcnn(50)),
    "torchvision_faster_rcnn_r50_fpn_v2": lambda: _coco_ids(zoo.torchvision_v2(zoo.faster_rcnn(50))),
    "torchvision_mask_rcnn_r50_fpn_v2": lambda: _coco_ids(zoo.torchvision_v2(zoo.mask_rcnn(50))),
}


def _strides_in_3x3(config: ConfigDict) -> ConfigDict:
    config.backbone.stride_in_1x1 = False
    return config


def _coco_ids(config: ConfigDict) -> ConfigDict:
    """torchvision's COCO classes are the ids, 1 to 90: ten of them are no class, but take part in the softmax."""
    config.num_classes = 90
    return config


def named(name: str) -> ConfigDict:
    """The config of a named architecture. Raises `UserError` for a name that is not in `NAMED`."""
    if name not in NAMED:
        raise UserError(f"no architecture named '{name}': choose one of {', '.join(NAMED)}")
    return NAMED[name]()
