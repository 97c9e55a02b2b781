"""The weights of torchvision and Detectron2, published or one's own, as variables of our models."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mrcnn_jax.checkpoints import detectron2, plain_weights, torchvision
from mrcnn_jax.checkpoints.metadata import SAFETENSORS_KEY, categories_from, config_from_dict
from mrcnn_jax.checkpoints.names import Entry, Library, entries, flatten, unflatten
from mrcnn_jax.checkpoints.recognise import (
    describe,
    follow_backbone,
    is_plain,
    library_of,
    network_name,
    num_classes,
    recognise,
)
from mrcnn_jax.checkpoints.weight_files import WeightFile, read_weights
from mrcnn_jax.config_files import override
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.data.published_classes import numbered, published_classes
from mrcnn_jax.errors import UserError
from mrcnn_jax.models.build import build, init, variable_shapes

# Names that a line gives in full.
_SHOWN = 4
# Prefixes of a backbone's names in a detector.
_PREFIX = re.compile(r"(backbone\.(bottom_up\.|body\.)?|roi_heads\.)(?=stem|res\d|conv1|bn1|layer\d)")


@dataclass(frozen=True)
class Weights:
    """A model, or a backbone for one, with its arrays and the ways that they expect."""

    name: str
    config: ConfigDict
    # None for a backbone, which has no classes of a detector.
    categories: tuple[Category, ...] | None
    # The arrays by path; and the paths of the model that have none.
    leaves: dict[str, np.ndarray]
    missing: tuple[str, ...] = ()
    # A line each: what was recognised, loaded, renamed, dropped and is missing, and what is assumed.
    report: tuple[str, ...] = ()

    def variables(self) -> dict[str, Any]:
        """All variables of the model, {"params": ..., "batch_stats": ...}; random where arrays are missing."""
        if not self.missing:
            return unflatten(self.leaves)
        # This generator compiles in a quarter of the time of the default one.
        random = flatten(jax.device_get(init(build(self.config), jax.random.key(0, impl="unsafe_rbg"))))
        return unflatten({path: self.leaves.get(path, leaf) for path, leaf in random.items()})


def import_weights(path: Path, **options: Any) -> Weights:
    """`convert` for a .pth, .pkl, .safetensors or .npz file; which of these, is found from what it holds."""
    return convert(read_weights(path), str(path), **options)


def convert(
    file: WeightFile,
    name: str,
    *,
    model: ConfigDict | None = None,
    backbone_of: ConfigDict | None = None,
    overrides: Mapping[str, Any] | None = None,
    categories: Sequence[Category] | None = None,
    allow_partial: bool = False,
) -> Weights:
    """The weights of a detector, or of an ImageNet network to begin one with, under our names and in our layouts.

    Args:
        file: what was read.
        name: what to call it.
        model: the config of the detector; by default it is recognised from names and shapes.
        backbone_of: the config of the model that an ImageNet network, which cannot tell, is to begin. It comes back
            with the strides and pixels of these weights. A plain network brings its two FCs along.
        overrides: dotted keys of the config, for what no shape tells: {"backbone.norm_eps": 1e-5}.
        categories: the classes in the order of the outputs; by default those of the published weights with that many.
        allow_partial: whether arrays may be missing; and may have no place or another shape, and are then dropped.

    Raises:
        UserError: the arrays are those of no model that is known; or, unless `allow_partial`, do not fit it.
    """
    if SAFETENSORS_KEY in file.metadata:
        return _own(file, name, overrides or {}, categories)
    library = library_of(file.arrays, name)
    arrays, renamed, dropped = _current(file, library, name)
    shapes = {key: array.shape for key, array in arrays.items()}
    backbone = is_backbone(file)
    if not backbone:
        config = model or recognise(shapes, library, name)
    elif backbone_of is None:
        example = "fast_rcnn_vgg16" if library == "plain" else "mask_rcnn_r50_fpn"
        raise UserError(f"{name} is a backbone alone: name the model that it begins, as --arch={example}")
    else:
        config = backbone_of
        _require_network(config, arrays, library, name)
    config = config.copy_and_resolve_references().unlock()
    if backbone:
        follow_backbone(config, file.arrays, library, shapes)
    else:
        config.num_classes = num_classes(config, shapes, name)
    for key, value in (overrides or {}).items():
        override(config, key, value)
    if backbone and categories is not None:
        raise UserError(f"{name} is a backbone alone, which has no classes to name: leave --classes out")
    classes = () if backbone else _classes(name, config, categories)

    parts = plain_weights.PARTS if library == "plain" else ("backbone/", "trunk/") if backbone else None
    fit = _fit(arrays, entries(config, library, parts), config)
    if not fit.leaves:
        raise UserError(f"{name} holds nothing that fits this model: its first array is {next(iter(file.arrays))}")
    if not allow_partial:
        fit.require_complete(name)
    whose = plain_weights.origin(file.arrays, name) or library
    report = [
        f"{name}: {'a backbone for ' if backbone else ''}{describe(config)}, as {whose} names it",
        f"  loaded: {len(fit.leaves)} arrays, {sum(leaf.size for leaf in fit.leaves.values()):,} numbers",
        *_line("renamed", renamed),
        *_line("dropped, no part of a detector", [*file.other, *dropped]),
        *_line("dropped, no place here", fit.unexpected),
        *_line("dropped, another shape", fit.misshapen),
        *_line("left at initialisation", fit.missing),
        *_line("classes, as given" if categories else "classes, assumed by their number", [c.name for c in classes]),
        f"  assumed, since no array tells: {_assumptions(config)}",
    ]
    return Weights(name, config, None if backbone else classes, fit.leaves, tuple(fit.missing), tuple(report))


def _classes(name: str, config: ConfigDict, given: Sequence[Category] | None) -> tuple[Category, ...]:
    if given is None:
        return assumed_classes(config)
    if len(given) != config.num_classes:
        names = ", ".join(category.name for category in given)
        raise UserError(f"{name} has {config.num_classes} classes, and --classes names {len(given)} ({names})")
    return tuple(given)


def assumed_classes(config: ConfigDict) -> tuple[Category, ...]:
    """The classes of a model whose weights came without names: those of published weights with as many."""
    if config.box is None:
        return numbered(["object"])
    return published_classes(config.num_classes, 0 if config.keypoint is None else config.keypoint.num_keypoints)


def _own(file: WeightFile, name: str, overrides: Mapping[str, Any], categories: Sequence[Category] | None) -> Weights:
    """A safetensors file that this package wrote, which says itself what it is."""
    try:
        metadata = json.loads(file.metadata[SAFETENSORS_KEY])
        config, known = config_from_dict(metadata["config"]).model, categories_from(metadata)
        shapes = {path: leaf.shape for path, leaf in flatten(variable_shapes(build(config))).items()}
    # Whatever a text that somebody has changed makes of the config.
    except Exception as error:
        raise UserError(f"{name}: its header describes no model of this version ({error}): export it again") from error
    found = {path: array.shape for path, array in file.arrays.items()}
    if found != shapes:
        wrong = sorted(path for path in found | shapes if found.get(path) != shapes.get(path))
        raise UserError(f"{name}: its header is of another model than its arrays, as in {wrong[0]}: export it again")
    for key, value in overrides.items():
        override(config, key, value)
    classes = tuple(known) if categories is None else _classes(name, config, categories)
    return Weights(name, config, classes, dict(file.arrays), report=(f"{name}: {describe(config)}",))


def is_backbone(file: WeightFile) -> bool:
    """Whether these are weights of a classifier, without a detector's heads."""
    heads = ("roi_heads.", "rpn.", "proposal_generator.")
    return SAFETENSORS_KEY not in file.metadata and not any(key.startswith(heads) for key in file.arrays)


def _current(file: WeightFile, library: Library, name: str) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """The arrays under the library's names of today; the keys that this renames, and those that it drops."""
    current = {"torchvision": torchvision, "detectron2": detectron2, "plain": plain_weights}[library].current_name
    arrays: dict[str, np.ndarray] = {}
    renamed, dropped = [], []
    for key, array in file.arrays.items():
        new = current(key)
        if new is None:
            dropped.append(key)
            continue
        if new in arrays:
            raise UserError(f"{name} has '{new}' twice, once as '{key}': give the weights of one model")
        arrays[new] = array
        if new != key:
            renamed.append(f"{key} -> {new}")
    return arrays, renamed, dropped


def _require_network(config: ConfigDict, arrays: Mapping[str, np.ndarray], library: Library, name: str) -> None:
    """Raises `UserError` unless this is the network that the model begins with."""
    if (library == "plain") != is_plain(config):
        kind = "a plain network" if library == "plain" else "a ResNet"
        raise UserError(f"{name} is {kind}, and the model begins with {network_name(config)}: give the weights of that")
    if library != "plain":
        return
    wanted = {entry.key: entry.key_shape for entry in entries(config, library, plain_weights.PARTS)}
    for key in sorted(wanted.keys() | arrays.keys()):
        if plain_weights.is_convolution(key) and (key not in arrays or arrays[key].shape != wanted.get(key)):
            found = f"{key} is {_by(arrays[key].shape)} there" if key in arrays else f"it has no {key}"
            raise UserError(f"{name} is not {network_name(config)}, which the model begins with: {found}")


@dataclass
class _Fit:
    """How the arrays of a file fit a model."""

    leaves: dict[str, np.ndarray] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def require_complete(self, name: str) -> None:
        problems = [
            line.strip().replace(":", "", 1)
            for what, some in (
                ("it lacks", self.missing),
                ("the model has no place for", self.unexpected),
                ("another shape have", self.misshapen),
            )
            for line in _line(what, some)
        ]
        if problems:
            raise UserError(
                f"{name} does not fit the model: {'; '.join(problems)}. Name its architecture with --arch, or take "
                "what fits with --allow-partial"
            )


def _fit(arrays: Mapping[str, np.ndarray], wanted: Sequence[Entry], config: ConfigDict) -> _Fit:
    """Puts every array in its place. A classifier's names are those of a detector's backbone without the prefix."""
    fit = _Fit()
    arrays = {_PREFIX.sub("", key): array for key, array in arrays.items()}
    for entry in wanted:
        array = arrays.pop(_PREFIX.sub("", entry.key), None)
        if array is None:
            fit.missing.append(entry.path)
        elif array.shape != entry.key_shape:
            fit.misshapen.append(f"{entry.key} ({_by(array.shape)}, where the model has {_by(entry.key_shape)})")
        else:
            fit.leaves[entry.path] = entry.load(array)
    # A norm that is constant here has no counter.
    fit.unexpected = [key for key in arrays if not key.endswith(".num_batches_tracked")]
    _complete_norms(fit, wanted, 0.0 if is_plain(config) else config.backbone.norm_eps)
    return fit


def _complete_norms(fit: _Fit, wanted: Iterable[Entry], eps: float) -> None:
    """Adds what a file leaves out of a norm since it does nothing.

    Caffe2's constant norms have no statistics, and one that was folded into its convolution only a bias. A variance of
    1 - eps makes the factor exactly 1, as Detectron2 does it. A counter that is missing is 0.
    """
    identity = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0 - eps, "num_batches": 0}
    known = {_layer(path) for path in fit.leaves}
    for entry in wanted:
        leaf = entry.path.rpartition("/")[2]
        if entry.path in fit.missing and "norm" in _layer(entry.path) and _layer(entry.path) in known:
            fit.leaves[entry.path] = np.full(entry.shape, identity[leaf], np.int32 if entry.is_counter else np.float32)
            fit.missing.remove(entry.path)


def _layer(path: str) -> str:
    """The layer that an array belongs to, whichever collection it is in."""
    return path.partition("/")[2].rpartition("/")[0]


def _assumptions(config: ConfigDict) -> str:
    p, b = config.preprocess, config.backbone
    network = ""
    if not is_plain(config):
        network = f", strides in the {'1 x 1' if b.stride_in_1x1 else '3 x 3'}, eps of norms {b.norm_eps:g}"
    anchors = "" if config.rpn is None else f", anchors of {', '.join(f'{s:g}' for s in sum(config.rpn.sizes, ()))} px"
    return (
        f"{'BGR' if p.bgr else 'RGB'} pixels of mean {tuple(p.mean)} and deviation {tuple(p.std)} (in RGB order), "
        f"short side {p.short_side} up to {p.max_size}{anchors}{network}"
    )


def _line(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"  {what}: {len(names)} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"]


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
