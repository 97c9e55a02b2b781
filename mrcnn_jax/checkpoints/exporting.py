"""Our variables as files that other programs load: torchvision's and Detectron2's state dicts, and safetensors."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from mrcnn_jax.checkpoints.metadata import SAFETENSORS_KEY, describe
from mrcnn_jax.checkpoints.names import Library, entries, flatten
from mrcnn_jax.checkpoints.recognise import is_plain
from mrcnn_jax.checkpoints.torch_writer import write_torch
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.errors import UserError
from mrcnn_jax.files import whole_file
from mrcnn_jax.pickles.writer import write_pickle


def export_detectron2(path: Path, variables: Mapping[str, Any], config: ConfigDict) -> list[str]:
    """Writes a `.pkl` for Detectron2's checkpointer, and returns in what it will differ from this model, a line each.

    Raises `UserError` where Detectron2 has no such model or the file cannot be written.
    """
    arrays = state_dict(variables, config, "detectron2")
    with whole_file(path) as partial, partial.open("wb") as file:
        for piece in write_pickle({"model": arrays, "__author__": "mrcnn_jax", "matching_heuristics": False}):
            file.write(piece)
    return other_conventions(config, "detectron2")


def export_torchvision(path: Path, variables: Mapping[str, Any], config: ConfigDict) -> list[str]:
    """Writes a state dict for torchvision's models, and returns in what they will differ from this one, a line each.

    Raises `UserError` where torchvision has no such model or the file cannot be written.
    """
    arrays = state_dict(variables, config, "torchvision")
    with whole_file(path) as partial:
        write_torch(partial, arrays)
    return other_conventions(config, "torchvision")


def export_safetensors(
    path: Path, variables: Mapping[str, Any], config: ConfigDict, categories: Iterable[Category]
) -> list[str]:
    """Writes our own names and layouts, with config and classes in the header: `mrcnn_jax.load` reads it again.

    Raises `UserError` where the file cannot be written.
    """
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in flatten(variables).items()}
    metadata = json.dumps(describe(ConfigDict({"model": config}), categories))
    with whole_file(path) as partial:
        save_file(arrays, partial, {SAFETENSORS_KEY: metadata})
    return []


def state_dict(variables: Mapping[str, Any], config: ConfigDict, library: Library) -> dict[str, np.ndarray]:
    """The variables under the keys and in the layouts of a library.

    torchvision's heads have outputs for the background, which nobody reads and which are zero here where the model has
    none, and none that serve all classes, which are repeated. Raises `UserError` where the library has no such model.
    """
    leaves = {path: np.asarray(leaf, order="C") for path, leaf in flatten(variables).items()}
    config = config.copy_and_resolve_references()
    _require_known_parts(config, library)
    if library == "torchvision":
        _require_torchvision(config)
    if config.box is not None:
        _set_outputs(leaves, config.box, "box_0/predictor/bbox_pred", 4, config.num_classes, library)
    if config.mask is not None:
        _set_outputs(leaves, config.mask, "tasks_mask/head/predictor", 1, config.num_classes, library)
    return {entry.key: entry.export(leaves[entry.path]) for entry in entries(config, library)}


def _require_known_parts(config: ConfigDict, library: Library) -> None:
    problem = None
    if is_plain(config):
        problem = "its networks are ResNets"
    elif config.backbone.get("non_local"):
        problem = "its ResNets have no non-local block"
    elif config.mask is not None and (config.mask.get("fc_dims") or config.mask.get("softmax")):
        problem = "its masks are made by convolutions, and each class alone"
    if problem:
        raise UserError(f"{library} has no model like this one: {problem}. Export it as safetensors")


def _require_torchvision(config: ConfigDict) -> None:
    problem = None
    if config.box is None:
        problem = "it has no RPN alone"
    elif config.fpn is None or config.rpn is None or len(config.box.iou) > 1:
        problem = "it has Faster, Mask and Keypoint R-CNN with a pyramid alone"
    elif "gn" in (config.backbone.norm, config.fpn.norm, config.box.norm):
        problem = "its builders have no group norm"
    if problem:
        raise UserError(f"torchvision has no model like this one: {problem}. Export it as detectron2 or safetensors")


def _set_outputs(
    leaves: dict[str, np.ndarray], part: ConfigDict, layer: str, per_class: int, num_classes: int, library: Library
) -> None:
    """Gives the last layer of a head the outputs that it has in the library."""
    for name in (f"params/{layer}/kernel", f"params/{layer}/bias"):
        # [..., classes, per_class]
        outputs = leaves[name].reshape(*leaves[name].shape[:-1], -1, per_class)
        background = outputs[..., :1, :] if part.background_output else np.zeros_like(outputs[..., :1, :])
        foreground = outputs[..., 1:, :] if part.background_output else outputs
        if library == "torchvision":
            foreground = np.repeat(foreground, num_classes, axis=-2) if part.class_agnostic else foreground
            outputs = np.concatenate([background, foreground], axis=-2)
        else:
            outputs = foreground
        leaves[name] = outputs.reshape(*leaves[name].shape[:-1], -1)
    part.background_output = library == "torchvision"
    part.class_agnostic = part.class_agnostic and library != "torchvision"


# What a library's models do whatever their arguments or config say.
_FIXED = {
    "torchvision": {
        "preprocess.rounding": "floor", "preprocess.interpolation": "torchvision", "preprocess.bgr": False,
        "backbone.stride_in_1x1": False, "rpn.rounded": True, "rpn.stride_from_grid": True, "roi.aligned": False,
        "roi.level_eps": 1e-6, "mask.paste": "torchvision", "keypoint.score": "logit",
    },
    "detectron2": {
        "preprocess.rounding": "round", "preprocess.interpolation": "pil", "rpn.rounded": False,
        "rpn.stride_from_grid": False, "roi.level_eps": 1e-8, "mask.paste": "detectron2",
        "keypoint.score": "probability",
    },
}  # fmt: skip


def other_conventions(config: ConfigDict, library: Library) -> list[str]:
    """The ways of this model that the library's models do not have, so that their detections will differ a little."""
    lines = []
    for name, theirs in _FIXED[library].items():
        part, key = name.split(".")
        ours: Any = config[part]
        if ours is not None and ours[key] != theirs:
            lines.append(f"{library} has {name}={theirs}, and this model {ours[key]}: detections will differ")
    return lines
