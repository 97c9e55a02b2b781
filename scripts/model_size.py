"""How large a model is: its parameters, and the arithmetic of one image's inference, both without running it."""

import json
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from mrcnn_jax.checkpoints.metadata import config_from_dict, config_to_dict
from mrcnn_jax.models import zoo
from mrcnn_jax.models.build import build, variable_shapes
from mrcnn_jax.models.pool import Pooler
from mrcnn_jax.planning.arithmetic import multiplications
from mrcnn_jax.types import Batch, Proposals, Pyramid


class _Unread(Pooler):
    """RoIs of zeros: interpolation is matrix products here, which other libraries' figures do not contain."""

    def __call__(self, pyramid: Pyramid, boxes: Array, valid: Array, size: int) -> Array:
        return jnp.zeros((*valid.shape, size, size, pyramid[self.levels[0]][0].shape[-1]))


# Of what is set here no parameter's shape depends: models that differ in it alone are traced once.
_WITHOUT_SHAPE = {
    "preprocess": ("short_side", "max_size", "std"),
    "backbone": ("stride_in_1x1", "frozen_stages"),
    "rpn": ("beta", "pre_nms", "post_nms"),
    "roi": ("num_samples", "pooling", "aligned", "sampling_ratio", "largest"),
    "box": ("beta", "regression_weight", "regress", "nms_threshold"),
}


def num_parameters(model: ConfigDict) -> int:
    """What a model has to train, counted from shapes alone."""
    values, usual = config_to_dict(model), config_to_dict(zoo.mask_rcnn())
    for part, keys in _WITHOUT_SHAPE.items():
        if values[part] is not None:
            values[part] |= {key: usual[part][key] for key in keys if key in values[part]}
    return _num_parameters(json.dumps(values))


@cache
def _num_parameters(model: str) -> int:
    shapes = variable_shapes(build(config_from_dict(json.loads(model))))["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def gigaflops(model: ConfigDict, height: int, width: int, num_proposals: int = 0) -> float:
    """Multiplications, in billions, of what `detect` traces for one image, without reading RoIs from the maps.

    `num_proposals` are those that come with the image, for a model without an RPN.
    """
    return _gigaflops(json.dumps(config_to_dict(model)), height, width, num_proposals)


@cache
def _gigaflops(model: str, height: int, width: int, num_proposals: int) -> float:
    network = build(config_from_dict(json.loads(model)))
    network = network.clone(pooler=_Unread(levels=network.pooler.levels))
    size = np.array([[height, width]], np.int32)
    proposals = None
    if num_proposals:
        boxes = np.zeros((1, num_proposals, 4), np.float32)
        proposals = Proposals(boxes, boxes[..., 0], np.ones((1, num_proposals), bool))
    image = np.zeros((1, height, width, 3), np.uint8)
    batch = Batch(image, size, size, np.zeros(1, np.int32), np.ones(1, bool), proposals=proposals)
    detect = jax.make_jaxpr(lambda variables, batch: network.apply(variables, batch, method="detect"))
    return multiplications(detect(variable_shapes(network), batch).jaxpr) / 1e9
