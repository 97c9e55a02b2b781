"""Which model a state dict belongs to, read from its keys and shapes."""

import re
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from mrcnn_jax.checkpoints import detectron2, plain_weights, torchvision
from mrcnn_jax.checkpoints.names import Library
from mrcnn_jax.errors import UserError
from mrcnn_jax.models import zoo

_TORCHVISION = re.compile(r"backbone\.body\.|layer[1-4]\.\d+\.|(conv1|bn1)\.")
_DETECTRON2 = re.compile(r"(backbone\.(bottom_up\.)?)?(stem\.|res\d\.\d+\.)|backbone\.fpn_|res\d_\d+_")
# Names of plain networks.
_PLAIN = {"alexnet": "AlexNet", "zf": "ZF", "vgg_m": "VGG_CNN_M_1024", "vgg16": "VGG-16", "small": "a small network"}
# Blocks of each stage, and whether they are bottlenecks.
_DEPTHS = {
    ((1, 1, 1, 1), False): 10, ((2, 2, 2, 2), False): 18, ((3, 4, 6, 3), False): 34, ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101, ((3, 8, 36, 3), True): 152,
}  # fmt: skip
# From how many classes on it is LVIS, which asks for more and fainter detections.
_LVIS = 1000


def library_of(keys: Iterable[str], file: str) -> Library:
    """Whose names these are. Raises `UserError`, naming `file`, where they are nobody's."""
    keys = list(keys)
    if plain_weights.origin(keys, file):
        return "plain"
    if any(_TORCHVISION.match(key) for key in keys):
        return "torchvision"
    if any(_DETECTRON2.match(key) for key in keys):
        return "detectron2"
    raise UserError(
        f"{file}: '{keys[0]}' and the other names in it are of no model that is known here: give the weights of an "
        "R-CNN or a ResNet of torchvision or Detectron2, or a plain network of Caffe"
    )


def recognise(shapes: Mapping[str, tuple[int, ...]], library: Library, file: str) -> ConfigDict:
    """The config of the model that has these arrays, with the conventions that published weights like them have.

    What no shape tells (strides, anchors, preprocessing) is that of the published model of this structure.

    Args:
        shapes: by key, under the library's current names.
        library: whose names they are.
        file: what to call the file.

    Raises:
        UserError: there is no such ResNet.
    """
    read = _Reader(shapes, library, file)
    keypoint, mask = read.shape("tasks_keypoint/head/score_lowres"), read.shape("tasks_mask/head/predictor")
    rpn, fpn, trunk = (read.shape(p) for p in ("rpn/head/objectness_logits", "fpn/lateral2", "trunk/res5_0/conv1"))
    read.config.fpn = read.config.fpn if fpn else None
    # torchvision has no model that is an RPN alone.
    rpn_alone = library == "detectron2" and rpn is not None and not any(key.startswith("roi_heads.") for key in shapes)
    # With C4, res5 belongs to the heads.
    c4 = not fpn and (read.shape("backbone/res5_0/conv1") is None if rpn_alone else trunk is not None)
    depth = _depth(read, file, num_stages=3 if c4 and rpn_alone else 4)
    if keypoint:
        config = zoo.keypoint_rcnn(depth)
    else:
        config = zoo.mask_rcnn(depth) if mask else zoo.faster_rcnn(depth) if rpn else zoo.fast_rcnn(depth)
    if read.is_cascade():
        config = zoo.cascade(config)
    if not fpn:
        config = zoo.c4(config) if c4 else zoo.dc5(config)
    if rpn_alone:
        config = zoo.rpn(config)
    read.config = config

    inner, per_group, *_ = read.need("backbone/res2_0/conv2")
    if inner > per_group:
        config = zoo.resnext(config)
        config.backbone.update({"groups": inner // per_group, "base_width": per_group})
    config.backbone.width = read.need("backbone/stem/conv1")[0]
    config.backbone.norm = read.norm("backbone/res2_0/norm1")
    if library == "torchvision":
        config = (zoo.torchvision_v1 if config.backbone.norm == "frozen_bn" else zoo.torchvision)(config)
    elif config.backbone.norm == "gn":
        config.backbone.stride_in_1x1 = False
    config.num_classes = num_classes(config, shapes, file)
    _read_heads(read, config)
    return config


def num_classes(config: ConfigDict, shapes: Mapping[str, tuple[int, ...]], file: str) -> int:
    """How many foreground classes a detector tells apart: an RPN alone one, object.

    Raises `UserError` where the file lacks the classifier of the box stage that `config` has.
    """
    if config.box is None:
        return 1
    for key in ("roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.0.cls_score.weight"):
        if len(shape := shapes.get(key, ())) == 2 and shape[0] > 1:
            return shape[0] - 1
    raise UserError(f"{file}: there is no classifier (roi_heads.box_predictor.cls_score.weight): is the file complete?")


def follow_backbone(
    config: ConfigDict, keys: Iterable[str], library: Library, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Gives a config the strides and the pixels that an ImageNet network of this origin was trained with.

    torchvision's, also as Detectron2 renames it, takes RGB; Caffe2's are Microsoft's, which stride in the 1 x 1
    convolutions and take BGR, or FAIR's own, which stride in the 3 x 3.
    """
    keys = list(keys)
    if whose := plain_weights.origin(keys, ""):
        plain_weights.follow_pixels(config, whose)
        return
    conv2 = next((s for k, s in shapes.items() if re.search(r"(res2|layer1)\.0\.conv2\.weight$", k)), (1, 1))
    num_groups = conv2[0] // max(conv2[1], 1)
    caffe2 = any(detectron2.is_caffe2(key) for key in keys)
    microsoft = caffe2 and num_groups == 1 and not any("_gn_" in key for key in keys)
    config.backbone.update({"stride_in_1x1": microsoft and config.backbone.depth > 34, "norm_eps": 1e-5})
    std = (1.0, 1.0, 1.0) if caffe2 and num_groups == 1 else (58.395, 57.12, 57.375)
    config.preprocess.update({"bgr": caffe2, "mean": (123.675, 116.28, 103.53), "std": std})


def describe(config: ConfigDict) -> str:
    """A model in a few words: "Mask R-CNN, ResNet-50-FPN, frozen_bn, 80 classes"."""
    b = config.backbone
    words = [_kind(config), network_name(config)]
    if not is_plain(config):
        words[1] += "-FPN" if config.fpn is not None else "-C4" if b.num_stages == 3 else "-DC5" if b.dilated else "-C5"
        words.append(b.norm or "no norm")
    return ", ".join(words if config.box is None else [*words, f"{config.num_classes} classes"])


def _kind(config: ConfigDict) -> str:
    """The member of the family: "Cascade Mask R-CNN"."""
    if config.box is None:
        return "RPN"
    if config.backbone is None:
        return "R-CNN"
    kind = "Fast" if config.rpn is None else "Faster"
    kind = "Mask" if config.mask is not None else "Keypoint" if config.keypoint is not None else kind
    return f"{'Cascade ' if len(config.box.iou) > 1 else ''}{kind} R-CNN"


def is_plain(config: ConfigDict) -> bool:
    """Whether a model begins with a network from before ResNets."""
    return config.backbone is None or "kind" in config.backbone


def network_name(config: ConfigDict) -> str:
    """The network that a model begins with: "ResNet-50", "ResNeXt-101 32x8d", "VGG-16"."""
    if is_plain(config):
        return _PLAIN[(config.trunk if config.backbone is None else config.backbone).kind]
    b = config.backbone
    return f"ResNet-{b.depth}" if b.groups == 1 else f"ResNeXt-{b.depth} {b.groups}x{b.base_width}d"


def _read_heads(read: "_Reader", config: ConfigDict) -> None:
    """Sets widths, numbers of layers and norms of everything behind the backbone, and the number of classes."""
    if config.fpn is not None:
        config.fpn.update({"channels": read.need("fpn/output2")[0], "norm": read.norm("fpn/output2_norm")})
    if config.rpn is not None:
        # The name of one convolution differs from those of two.
        config.rpn.num_convs = 2
        config.rpn.num_convs = max(read.count("rpn/head/conv{}"), 1)
        config.rpn.channels = read.need("rpn/head/conv1")[0]
    if config.box is None:
        return
    config.box.num_convs = read.count("box_0/head/conv{}")
    if config.box.num_convs:
        config.box.conv_dim = read.need("box_0/head/conv1")[0]
    config.box.norm = read.norm("box_0/head/norm1")
    config.box.fc_dims = tuple(read.need(f"box_0/head/fc{i + 1}")[0] for i in range(read.count("box_0/head/fc{}")))
    unread = 1 if config.box.background_output else 0
    config.box.class_agnostic = config.num_classes > 1 and read.need("box_0/predictor/bbox_pred")[0] == 4 * (1 + unread)
    if config.num_classes >= _LVIS:
        config.box.update({"score_threshold": 1e-4, "max_detections": 300})
    if config.mask is not None:
        convs = read.count("tasks_mask/head/conv{}")
        outputs, dim = read.need("tasks_mask/head/predictor")[:2]
        agnostic = config.num_classes > 1 and outputs == 1 + unread
        config.mask.update({"num_convs": convs, "dim": dim, "class_agnostic": agnostic})
        config.mask.norm = read.norm("tasks_mask/head/norm1")
    if config.keypoint is not None:
        count = read.count("tasks_keypoint/head/conv{}")
        config.keypoint.conv_dims = tuple(read.need(f"tasks_keypoint/head/conv{i + 1}")[0] for i in range(count))
        config.keypoint.num_keypoints = read.need("tasks_keypoint/head/score_lowres")[1]


def _depth(read: "_Reader", file: str, num_stages: int) -> int:
    stages = [f"backbone/res{stage}_{{}}/conv1" for stage in (2, 3, 4)]
    last = "trunk/res5_{}/conv1" if read.shape("trunk/res5_0/conv1") else "backbone/res5_{}/conv1"
    counts = tuple(read.count(path, first=0) for path in (*stages, last)[:num_stages])
    bottlenecks = read.shape("backbone/res2_0/conv3") is not None
    # Three stages tell them apart already.
    known = {(blocks[:num_stages], kind): depth for (blocks, kind), depth in _DEPTHS.items()}
    if (counts, bottlenecks) not in known:
        raise UserError(
            f"{file} has a ResNet of {', '.join(map(str, counts))} blocks, which is not known here: there are depths "
            f"{', '.join(map(str, sorted(_DEPTHS.values())))}"
        )
    return known[counts, bottlenecks]


class _Reader:
    """The shapes of a file, asked for by our own module paths. What their names are depends on `config`."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], library: Library, file: str) -> None:
        self.shapes = shapes
        self.file = file
        self.rename = torchvision.module_name if library == "torchvision" else detectron2.module_name
        self.config = zoo.mask_rcnn()

    def shape(self, path: str) -> tuple[int, ...] | None:
        """The shape of the weight of a layer; None where there is no such layer."""
        return self.shapes.get(f"{self.rename(path.split('/'), self.config)}.weight")

    def need(self, path: str) -> tuple[int, ...]:
        """The shape of the weight of a layer that the model cannot do without: a matrix or a convolution."""
        shape = self.shape(path)
        if shape is None or len(shape) not in (2, 4) or 0 in shape:
            key = f"{self.rename(path.split('/'), self.config)}.weight"
            found = "is missing" if shape is None else f"has shape {shape}"
            raise UserError(f"{self.file}: {key} {found}: is the file complete?")
        return shape

    def count(self, path: str, first: int = 1) -> int:
        """How many layers `path` has, numbered from `first`."""
        number = first
        while self.shape(path.format(number)):
            number += 1
        return number - first

    def norm(self, path: str) -> str:
        """The kind of a norm; '' where there is none."""
        module = self.rename(path.split("/"), self.config)
        if f"{module}.num_batches_tracked" in self.shapes:
            return "bn"
        if f"{module}.running_mean" in self.shapes:
            return "frozen_bn"
        return "gn" if f"{module}.weight" in self.shapes else ""

    def is_cascade(self) -> bool:
        """Whether the box predictors are numbered."""
        return "roi_heads.box_predictor.0.cls_score.weight" in self.shapes
