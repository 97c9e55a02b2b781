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
from mrcnn_jax.nn.heads import BoxHead, BoxPredictor, RPNHead
from mrcnn_jax.nn.mask_heads import KeypointHead, MaskHead, MaskMLP
from mrcnn_jax.nn.plain import PlainNet, PlainTrunk
from mrcnn_jax.nn.resnet import Res5, ResNet
from mrcnn_jax.types import empty_batch


def build(config: ConfigDict, axis_name: str | None = None) -> RCNN:
    """The network that a model config describes; `None` in the place of a part is a model without it.

    `axis_name` is the mesh axis that synchronised BatchNorm reduces over.
    Raises `UserError` where parts do not go together.
    """
    c, preprocess = config, config.preprocess
    if c.rpn is None and c.box is None:
        raise UserError("the model has neither an RPN nor a box stage (model.rpn, model.box): give it one of them")
    common = {"dtype": c.dtype, "axis_name": axis_name}
    return RCNN(
        pixels=Pixels(
            mean=tuple(preprocess.mean), std=tuple(preprocess.std), bgr=preprocess.bgr, divisor=preprocess.divisor,
            canvas=preprocess.canvas, dtype=c.dtype,
        ),
        backbone=_backbone(c, common),
        fpn=None if c.fpn is None else FPN(channels=c.fpn.channels, norm=c.fpn.norm or None, **common),
        rpn=None if c.rpn is None else _rpn(c),
        pooler=Pooler(
            kind=c.roi.pooling, aligned=c.roi.aligned, sampling_ratio=c.roi.sampling_ratio, largest=c.roi.largest,
            level_eps=c.roi.level_eps, canonical_size=c.roi.canonical_size, levels=tuple(c.roi.levels),
            context=c.roi.context,
        ),
        trunk=_trunk(c, common),
        box=() if c.box is None else _box_stages(c, common),
        tasks=_tasks(c, common),
        num_samples=c.roi.num_samples, positive_fraction=c.roi.positive_fraction, background_iou=c.roi.background_iou,
    )  # fmt: skip


def init(network: RCNN, key: Array) -> dict[str, Any]:
    """Random variables of a network: {"params": trained, "batch_stats": buffers}."""
    if isinstance(key, jax.core.Tracer):  # Within somebody's jit or eval_shape, which has the options.
        return _touch(network, key)
    # Compiled without any optimisation, as in tests, a ResNet-50 takes half a minute to draw; the bits are the same.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(lambda key: _touch(network, key), compiler_options=options)(key)


def variable_shapes(network: RCNN) -> dict[str, Any]:
    """The same tree with a `jax.ShapeDtypeStruct` in the place of every array; nothing is computed."""
    return jax.eval_shape(lambda key: _touch(network, key), jax.random.key(0))


def _touch(network: RCNN, key: Array) -> dict[str, Any]:
    variables = network.init(key, empty_batch(1, (64, 64)), method="touch")
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def _rpn(c: ConfigDict) -> RPN:
    head = RPNHead(c.rpn.channels, c.rpn.num_convs, len(c.rpn.ratios) * len(c.rpn.sizes[0]), c.dtype)
    return RPN(head=head, **{key: value for key, value in c.rpn.items() if key not in ("channels", "num_convs")})


def _backbone(c: ConfigDict, common: dict) -> ResNet | PlainNet | None:
    if c.backbone is None:
        return None
    return PlainNet(**c.backbone, dtype=c.dtype) if "kind" in c.backbone else ResNet(**c.backbone, **common)


def _trunk(c: ConfigDict, common: dict) -> Res5 | PlainTrunk | None:
    """The network that every RoI passes: all of R-CNN's, or the stage that a C4 backbone leaves out."""
    if c.box is None:
        return None
    if c.backbone is None:
        return PlainTrunk(**c.trunk, dtype=c.dtype)
    if c.backbone.get("num_stages", 4) > 3:
        return None
    of_the_backbone_alone = ("num_stages", "dilated", "frozen_stages", "non_local")
    return Res5(**{key: value for key, value in c.backbone.items() if key not in of_the_backbone_alone}, **common)


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
                dropout=c.box.dropout, norm=c.box.norm or None, **common,
            ),
            predictor=BoxPredictor(
                num_classes=c.num_classes, class_agnostic=c.box.class_agnostic,
                background_output=c.box.background_output, pooled_deltas=c.box.pooled_deltas, dtype=c.dtype,
            ),
            iou=iou, weights=tuple(weights),
            **{key: c.box[key] for key in (
                "size", "beta", "regression_weight", "regress", "score", "score_threshold", "nms_threshold",
                "max_detections", "num_candidates", "min_size",
            )},
        )
        for iou, weights in zip(c.box.iou, c.box.weights, strict=True)
    )  # fmt: skip


def _tasks(c: ConfigDict, common: dict) -> dict[str, MaskTask | KeypointTask]:
    tasks = {}
    if c.mask is not None:
        tasks["mask"] = MaskTask(
            _mask_head(c, common), c.mask.size, c.mask.num_samples, c.mask.soft_targets, c.mask.softmax
        )
    if c.keypoint is not None:
        head = KeypointHead(tuple(c.keypoint.conv_dims), c.keypoint.num_keypoints, c.dtype)
        tasks["keypoint"] = KeypointTask(head, c.keypoint.size, c.keypoint.num_samples, c.keypoint.score)
    return tasks


def _mask_head(c: ConfigDict, common: dict) -> MaskHead | MaskMLP:
    # Where classes compete, the background is one of them.
    num_classes = (1 if c.mask.class_agnostic else c.num_classes) + int(c.mask.softmax)
    if c.mask.fc_dims:
        return MaskMLP(tuple(c.mask.fc_dims), num_classes, c.dtype)
    return MaskHead(
        num_convs=c.mask.num_convs, dim=c.mask.dim, norm=c.mask.norm or None, num_classes=num_classes,
        background_output=c.mask.background_output, **common,
    )  # fmt: skip
