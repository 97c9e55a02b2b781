"""What training starts from: random numbers, the weights of a detector, or a backbone trained on ImageNet.

Weights bring along the ways that they were trained with: channel order and scale of pixels, strides, anchors, how RoIs
are read. `adopt` gives an experiment these; at which sizes it trains, and how much of everything, stays its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mrcnn_jax.checkpoints.class_heads import heads_by_class
from mrcnn_jax.checkpoints.folders import newest_metadata
from mrcnn_jax.checkpoints.importing import Weights, convert, is_backbone
from mrcnn_jax.checkpoints.metadata import categories_from, config_from_dict
from mrcnn_jax.checkpoints.names import flatten, unflatten
from mrcnn_jax.checkpoints.params import load_params
from mrcnn_jax.checkpoints.recognise import is_plain, network_name
from mrcnn_jax.checkpoints.weight_files import read_weights
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.errors import UserError
from mrcnn_jax.models.build import init
from mrcnn_jax.models.rcnn import RCNN
from mrcnn_jax.object_store import AnyPath, any_path

_NO_WEIGHTS = (
    "warning: random weights, and norms that do nothing (config.model.backbone.norm=frozen_bn): a deep network then "
    "seldom trains. Name weights with config.train.init, or set config.model.backbone.norm to gn or bn"
)
# What an experiment decides, whatever its weights were trained with.
_OF_THE_EXPERIMENT = (
    "preprocess.short_side", "preprocess.max_size", "preprocess.canvas", "backbone.frozen_stages", "backbone.remat",
    "rpn.num_samples", "rpn.pre_nms", "rpn.post_nms", "roi.num_samples", "roi.positive_fraction",
    "box.score_threshold", "box.max_detections", "box.num_candidates", "mask.num_samples", "keypoint.num_samples",
)  # fmt: skip
# Names that a line gives in full.
_SHOWN = 6


def read_source(config: ConfigDict, workdir: AnyPath | None = None) -> Weights | None:
    """The weights that `config.train.init` names: a run or checkpoint of this package, or a file of others'.

    None where it is empty. A run in `workdir` that goes on has its weights in its checkpoints, so that only the model's
    config is read. Raises `UserError` where there is no such file, or where it cannot be used.
    """
    if not config.train.init:
        return None
    saved = None if workdir is None else newest_metadata(workdir)
    if saved is not None and saved["config"]["train"]["init"] == config.train.init:
        return Weights(str(workdir), config_from_dict(saved["config"]).model, None, {})
    path = any_path(config.train.init).expanduser()
    # In an object store there are checkpoints, no files of others'.
    if not isinstance(path, Path) or path.is_dir():
        params, batch_stats, metadata = load_params(path)
        leaves = flatten({"params": params, "batch_stats": batch_stats})
        report = (f"{path}: {len(leaves)} arrays",)
        model = config_from_dict(metadata["config"]).model
        return Weights(str(path), model, categories_from(metadata), leaves, report=report)
    if not path.exists():
        raise UserError(
            f"config.train.init={config.train.init} does not exist: give a checkpoint or a file of weights, or leave "
            "it empty"
        )
    file = read_weights(path)
    # Part of a backbone is better than none; a detector that lacks something is a mistake.
    return convert(file, str(path), backbone_of=config.model, allow_partial=is_backbone(file))


def adopt(config: ConfigDict, source: Weights | None) -> tuple[ConfigDict, list[str]]:
    """The experiment with the model of the weights that it starts from, and a line on what that changes.

    Which heads there are stays as it is, and so do the keys in `_OF_THE_EXPERIMENT` and those of `config.model` that
    were set on the command line, which are in `config.model_overrides`. Raises `UserError` where the two begin with
    networks of other kinds.
    """
    if source is None:
        return config, []
    if source.leaves:
        _require_same_kind(config, source)
    config = config.copy_and_resolve_references().unlock()
    by_hand: Any = config.get("model_overrides", ())
    kept = (*_OF_THE_EXPERIMENT, *by_hand)
    changed = []
    for part, theirs in source.config.items():
        ours = config.model.get(part)
        # An RPN that is alone is the head.
        if part in by_hand or (part == "rpn" and config.model.box is None and theirs is None):
            continue
        if part in ("fpn", "rpn") and (theirs is None or ours is None):
            if theirs is not ours:
                changed.append(f"{part} ({'none' if theirs is None else 'has one'})")
                config.model[part] = theirs
        elif isinstance(ours, ConfigDict) and theirs is not None:
            for key, value in theirs.items():
                if f"{part}.{key}" not in kept and key in ours and ours[key] != value:
                    changed.append(f"{part}.{key} ({ours[key]} -> {value})")
                    ours[key] = value
    told = f"{', '.join(changed[:_SHOWN])}{f' and {len(changed) - _SHOWN} more' if len(changed) > _SHOWN else ''}"
    return config.lock(), [f"config.model follows these weights in {told}"] if changed else []


def _require_same_kind(config: ConfigDict, source: Weights) -> None:
    kinds = [
        (model.backbone is None, network_name(model) if is_plain(model) else "ResNet")
        for model in (config.model, source.config)
    ]
    if kinds[0] != kinds[1]:
        ours, theirs = (
            f"{network_name(model)}{' for regions (R-CNN)' if model.backbone is None else ''}"
            for model in (config.model, source.config)
        )
        raise UserError(
            f"{source.name} begins with {theirs}, and config.model with {ours}: name weights with the same network in "
            "config.train.init, or change config.model.backbone"
        )


def initial_variables(
    model: RCNN, config: ConfigDict, source: Weights | None = None, classes: Sequence[Category] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Variables to start from, and a report, a line each.

    Arrays of `source` whose name and shape fit are taken. What a head says of a class is taken from the class of the
    same name; a class that the weights do not know starts at random.
    """
    # This generator compiles in a quarter of the time of the default one: dozens of arrays are drawn.
    variables = jax.device_get(init(model, jax.random.key(config.seed, impl="unsafe_rbg")))
    if source is not None and not source.leaves:
        return variables, []
    if source is None:
        norm = None if config.model.backbone is None else config.model.backbone.get("norm")
        return variables, [_NO_WEIGHTS] if norm == "frozen_bn" else []
    leaves, report = flatten(variables), list(source.report)
    taken = dict(source.leaves)
    if source.categories is not None:
        taken, lines = heads_by_class(taken, leaves, source.config, source.categories, classes)
        report += lines
    fits = [path for path, leaf in leaves.items() if path in taken and taken[path].shape == leaf.shape]
    if not fits:
        raise UserError(f"{source.name} holds nothing that fits this model: its first array is {next(iter(taken))}")
    leaves |= {path: taken[path].astype(leaves[path].dtype) for path in fits}
    for what, some in (
        ("left at initialisation, other shape", [path for path in leaves if path in taken and path not in set(fits)]),
        ("left at initialisation", [path for path in leaves if path not in taken]),
        ("not used", [path for path in taken if path not in leaves]),
    ):
        if some:
            report.append(f"  {what}: {len(some)} ({', '.join(some[:4])}{', ...' if len(some) > 4 else ''})")
    return unflatten(leaves), report
