"""What torchvision and Detectron2 call our arrays, and how they lay them out: one table for import and export.

An array of ours is named by its path, "params/backbone/res2_0/conv1/kernel"; theirs by a state-dict key,
"backbone.bottom_up.res2.0.conv1.weight". Layouts are PyTorch's: convolutions OIHW, matrices (out, in). The third
library, "plain", is of networks trained on ImageNet before ResNets, and for import alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from ml_collections import ConfigDict

from mrcnn_jax.checkpoints import detectron2, plain_weights, torchvision
from mrcnn_jax.models.build import build, variable_shapes
from mrcnn_jax.nn.plain import LAYERS

Library = Literal["torchvision", "detectron2", "plain"]

_MODULE = {
    "torchvision": torchvision.module_name, "detectron2": detectron2.module_name, "plain": plain_weights.module_name,
}  # fmt: skip
# The leaves of a layer, ours and theirs.
_LEAF = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var",
    "num_batches": "num_batches_tracked",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One array: its path and shape here, its key and shape there, and the way between the two."""

    path: str
    shape: tuple[int, ...]
    key: str
    key_shape: tuple[int, ...]
    # Ours seen with this shape, its axes put in this order, is theirs but for flattening.
    view: tuple[int, ...]
    axes: tuple[int, ...]
    # The background is their last class and our first.
    background_last: bool = False

    def load(self, theirs: np.ndarray) -> np.ndarray:
        """Our array of theirs: float32, or int32 for a counter."""
        theirs = np.roll(theirs, 1, axis=0) if self.background_last else theirs
        ours = theirs.reshape([self.view[axis] for axis in self.axes]).transpose(np.argsort(self.axes))
        # Not ascontiguousarray, which makes a scalar a row.
        return np.array(ours.reshape(self.shape), np.int32 if self.is_counter else np.float32, order="C")

    def export(self, ours: np.ndarray) -> np.ndarray:
        """Their array of ours: float32, or int64 for a counter."""
        theirs = ours.reshape(self.view).transpose(self.axes).reshape(self.key_shape)
        theirs = np.roll(theirs, -1, axis=0) if self.background_last else theirs
        return np.array(theirs, np.int64 if self.is_counter else np.float32, order="C")

    @property
    def is_counter(self) -> bool:
        """Whether this is the number of batches that a BatchNorm has seen."""
        return self.path.endswith("/num_batches")


def entries(config: ConfigDict, library: Library, parts: tuple[str, ...] | None = None) -> list[Entry]:
    """An entry for every array of the model that `config` describes, or of some parts of it: ("backbone/", "trunk/").

    Raises `UserError` where the library has no such model.
    """
    found = []
    for path, leaf in flatten(variable_shapes(build(config))).items():
        shape = leaf.shape
        _, *modules, name = path.split("/")
        if parts and not "/".join(modules).startswith(parts):
            continue
        key = f"{_MODULE[library](modules, config)}.{_LEAF[name]}"
        view, axes = _layout(modules, name, shape, config)
        key_shape = (shape[1], shape[0]) if name == "kernel" and len(shape) == 2 else tuple(view[i] for i in axes)
        background_last = library == "detectron2" and modules[-1] == "cls_score"
        found.append(Entry(path, shape, key, key_shape, view, axes, background_last))
    return found


def _layout(
    modules: list[str], name: str, shape: tuple[int, ...], config: ConfigDict
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How ours is to be seen, and the order of its axes there."""
    if name != "kernel":
        return shape, tuple(range(len(shape)))
    if len(shape) == 4:
        return shape, (2, 3, 0, 1) if modules[-1] in ("deconv", "score_lowres") else (3, 2, 0, 1)
    if modules[-1] == "fc1":
        # It reads RoI features, flattened by row, column, channel here and by channel, row, column there.
        size = _cells(config, shape[0])
        return (size, size, shape[0] // size**2, shape[1]), (3, 2, 0, 1)
    return shape, (1, 0)


def _cells(config: ConfigDict, num_inputs: int) -> int:
    """Cells along a side of what the box head's first FC reads: of a RoI, or of what R-CNN's network makes of it."""
    if config.backbone is not None:
        return config.box.size
    return math.isqrt(num_inputs // LAYERS[config.trunk.kind][-1].features)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of nested dicts by path."""
    return {"/".join(p.key for p in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Variables from leaves by path: the inverse of `flatten`, with both collections even where one is empty."""
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
