"""Heads for other classes: what the last layers say of a class is carried over by its name."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from mrcnn_jax.data.dataset import Category

_CLASSIFIER = re.compile(r"params/box_\d+/predictor/cls_score/(kernel|bias)")
_BOXES = re.compile(r"params/box_\d+/predictor/bbox_pred/(kernel|bias)")
_MASKS = re.compile(r"params/tasks_mask/head/predictor/(kernel|bias)")
# Names that a line gives in full.
_SHOWN = 5


def heads_by_class(
    leaves: Mapping[str, np.ndarray],
    initial: Mapping[str, np.ndarray],
    config: ConfigDict,
    known: Sequence[Category],
    wanted: Sequence[Category],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The weights with heads for the classes `wanted`, and a line that says what became of them, if there are any.

    Args:
        leaves: weights by path, of a model for the classes `known`.
        initial: initial values by path, of the model for the classes `wanted`; what no class of this name is known for
            keeps them.
        config: of the model; it says whether boxes and masks are predicted a class at all.
    """
    if not any(_block(path, config) for path in leaves):
        return dict(leaves), []
    source = {category.name.lower(): number for number, category in enumerate(known)}
    pairs = [(new, source[c.name.lower()]) for new, c in enumerate(wanted) if c.name.lower() in source]
    if len(known) == len(wanted) and pairs == [(i, i) for i in range(len(wanted))]:
        return dict(leaves), []
    result = dict(leaves)
    for path, old in leaves.items():
        block = _block(path, config)
        if block is None or path not in initial:
            continue
        per_class, first = block
        # [..., class, numbers of a class]; in front of the classes may be the background.
        new = initial[path].reshape(*initial[path].shape[:-1], -1, per_class).copy()
        old = old.reshape(*old.shape[:-1], -1, per_class)
        if pairs:
            new[..., :first, :] = old[..., :first, :]
        for to, at in pairs:
            new[..., first + to, :] = old[..., first + at, :]
        result[path] = new.reshape(initial[path].shape)
    lost = [c.name for c in wanted if c.name.lower() not in source]
    line = f"  classes: {len(pairs)} of {len(wanted)} known to these weights ({len(known)} classes) by name"
    if lost:
        line += f"; at initialisation: {', '.join(lost[:_SHOWN])}{', ...' if len(lost) > _SHOWN else ''}"
    return result, [line]


def _block(path: str, config: ConfigDict) -> tuple[int, int] | None:
    """Numbers a class in the last axis of an array, and how many classes stand before the first; None for others."""
    if _CLASSIFIER.fullmatch(path):
        return 1, 1
    if _BOXES.fullmatch(path) and not config.box.class_agnostic:
        return 4, int(config.box.background_output)
    if _MASKS.fullmatch(path) and not config.mask.class_agnostic:
        return 1, int(config.mask.background_output)
    return None
