"""From a model config (`zoo`) to the network that it describes, and its variables."""

from typing import Any

import jax
from jax import Array
from ml_collections import ConfigDict

from mrcnn_jax.errors import UserError
from mrcnn_jax.models.box import BoxStage
from mrcnn_jax.models.keypoint import KeypointTask
from mrcnn_jax.models.mask import MaskTask
from mrcnn_jax.models.pixels import Pixels
from mrcnn_jax.models.pool import Pooler
from mrcnn_jax.models.rcnn import RCNN
from mrcnn_jax.models.rpn import RPN
from mrcnn_jax.nn.fpn import FPN
from mrcnn_jax.nn.heads import BoxHead, BoxPredictor, KeypointHead, MaskHead, RPNHead
from mrcnn_jax.nn.resnet import Res5, ResNet
from mrcnn_jax.types import empty_batch


def build(config: ConfigDict, axis_name: str | None = None) -> RCNN:
    """The network that a model config describes; `None` in the place of a part is a model without it.

    `axis_name` is the mesh axis that synchronised BatchNorm reduces over.
    """
    c, preprocess = config, config.preprocess
    common = {"dtype": c.dtype, "axis_name": axis_name}
    return RCNN(
        pixels=Pixels(
            mean=tuple(preprocess.mean), std=tuple(preprocess.std), bgr=preprocess.bgr, divisor=preprocess.divisor,
            canvas=preprocess.canvas, dtype=c.dtype,
        ),
        backbone=ResNet(**c.backbone, **common),
        fpn=None if c.fpn is None else FPN(channels=c.fpn.channels, norm=c.fpn.norm or None, **common),
        rpn=None if c.rpn is None else _rpn(c),
        pooler=Pooler(
            aligned=c.roi.aligned, sampling_ratio=c.roi.sampling_ratio, level_eps=c.roi.level_eps,
            canonical_size=c.roi.canonical_size, levels=tuple(c.roi.levels),
        ),
        trunk=None if c.backbone.num_stages > 3 else _res5(c, common),
        box=_box_stages(c, common),
        tasks=_tasks(c, common),
        num_samples=c.roi.num_samples, positive_fraction=c.roi.positive_fraction,
    )  # fmt: skip


def init(network: RCNN, key: Array) -> dict[str, Any]:
    """Random variables of a network: {"params": trained, "batch_stats": buffers}."""
    return jax.jit(lambda key: _touch(network, key))(key)


def variable_shapes(network: RCNN) -> dict[str, Any]:
    """The same tree with a `jax.ShapeDtypeStruct` in the place of every array; nothing is computed."""
    return jax.eval_shape(lambda key: _touch(network, key), jax.random.key(0))


def _touch(network: RCNN, key: Array) -> dict[str, Any]:
    variables = network.init(key, empty_batch(1, (64, 64)), method="touch")
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def _rpn(c: ConfigDict) -> RPN:
    head = RPNHead(c.rpn.channels, c.rpn.num_convs, len(c.rpn.ratios) * len(c.rpn.sizes[0]), c.dtype)
    return RPN(head=head, **{key: value for key, value in c.rpn.items() if key not in ("channels", "num_convs")})


def _res5(c: ConfigDict, common: dict) -> Res5:
    of_the_trunk_alone = ("num_stages", "dilated", "frozen_stages")
    return Res5(**{key: value for key, value in c.backbone.items() if key not in of_the_trunk_alone}, **common)


def _box_stages(c: ConfigDict, common: dict) -> tuple[BoxStage, ...]:
    if len(c.box.iou) != len(c.box.weights):
        raise UserError(
            f"box.iou has {len(c.box.iou)} stages and box.weights {len(c.box.weights)}: give one of each a stage"
        )
    if len(c.box.iou) > 1 and not c.box.class_agnostic:
        raise UserError("a cascade moves a box before its class is known: set box.class_agnostic=True")
    return tuple(
        BoxStage(
            head=BoxHead(
                num_convs=c.box.num_convs, conv_dim=c.box.conv_dim, fc_dims=tuple(c.box.fc_dims),
                norm=c.box.norm or None, **common,
            ),
            predictor=BoxPredictor(
                num_classes=c.num_classes, class_agnostic=c.box.class_agnostic,
                background_output=c.box.background_output, dtype=c.dtype,
            ),
            iou=iou, weights=tuple(weights),
            **{key: c.box[key] for key in (
                "size", "beta", "score_threshold", "nms_threshold", "max_detections", "num_candidates", "min_size",
            )},
        )
        for iou, weights in zip(c.box.iou, c.box.weights, strict=True)
    )  # fmt: skip


def _tasks(c: ConfigDict, common: dict) -> dict[str, MaskTask | KeypointTask]:
    tasks = {}
    if c.mask is not None:
        head = MaskHead(
            num_convs=c.mask.num_convs, dim=c.mask.dim, norm=c.mask.norm or None,
            num_classes=1 if c.mask.class_agnostic else c.num_classes, background_output=c.mask.background_output,
            **common,
        )  # fmt: skip
        tasks["mask"] = MaskTask(head, c.mask.size, c.mask.num_samples, c.mask.soft_targets)
    if c.keypoint is not None:
        head = KeypointHead(tuple(c.keypoint.conv_dims), c.keypoint.num_keypoints, c.dtype)
        tasks["keypoint"] = KeypointTask(head, c.keypoint.size, c.keypoint.num_samples, c.keypoint.score)
    return tasks
