"""The heads of a two-stage detector for anchors and boxes, as Detectron2 and torchvision build and initialise them.

Features may be bfloat16; the last layer of every head, and with it logits and deltas, is float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Key

from mrcnn_jax.nn.conv import Conv, cells_of, within, xavier_fan_in
from mrcnn_jax.nn.norm import norm
from mrcnn_jax.types import Pyramid


def normal(std: float):
    return nn.initializers.normal(std)


class RPNHead(nn.Module):
    """Objectness logits and box deltas of every anchor of every level, by the same convolutions.

    Names: conv1, ..., objectness_logits, anchor_deltas.
    """

    channels: int = 256
    num_convs: int = 1
    num_anchors: int = 3
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pyramid: Pyramid) -> tuple[list[Float[Array, "b _"]], list[Float[Array, "b _ 4"]]]:
        """Finest level first; a level's anchors are flattened by row, column, anchor."""
        convs = [
            Conv(self.channels, 3, use_bias=True, dtype=self.dtype, kernel_init=normal(0.01), name=f"conv{i + 1}")
            for i in range(self.num_convs)
        ]
        objectness = Conv(self.num_anchors, 1, use_bias=True, kernel_init=normal(0.01), name="objectness_logits")
        regression = Conv(4 * self.num_anchors, 1, use_bias=True, kernel_init=normal(0.01), name="anchor_deltas")
        logits, deltas = [], []
        for level in sorted(pyramid):
            x, extent = pyramid[level]
            for conv in convs:
                x = within(nn.relu(conv(x)), extent)
            logits.append(_rows_end_to_end(objectness(x)))
            deltas.append(regression(x).reshape(x.shape[0], -1, 4))
        return logits, deltas


def _rows_end_to_end(x: Float[Array, "b h w c"]) -> Float[Array, "b _"]:
    """All values of an image in one axis, by row, column and channel.

    In two steps, which the barrier keeps apart: one reshape of a few channels costs XLA minutes to compile for a TPU,
    and four times the code.
    """
    b, h, w, c = x.shape
    return jax.lax.optimization_barrier(x.reshape(b, h, w * c)).reshape(b, -1)


class BoxHead(nn.Module):
    """RoI features to a vector: 2 FC, or with `num_convs=4, fc_dims=(1024,)` the 4 conv + 1 FC of Wu & He (2018).

    Without FC it is the mean over the cells (C4). Names: conv1, norm1, ..., fc1, ... The first FC reads its input in
    the order row, column, channel.
    """

    num_convs: int = 0
    conv_dim: int = 256
    fc_dims: tuple[int, ...] = (1024, 1024)
    # The share of an FC's outputs that a training step drops (Fast R-CNN: 0.5).
    dropout: float = 0.0
    norm: str | None = None
    dtype: str = "float32"
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n s s c"],
        train: bool,
        valid: Bool[Array, " n"] | None = None,
        keys: Key[Array, " n"] | None = None,
    ) -> Float[Array, "n f"]:
        """`valid` tells which RoIs exist, for the statistics of a synchronised BatchNorm; None is all.

        `keys` are what dropout draws from, one a RoI; without them nothing is dropped.
        """
        x = conv_row(x, self.num_convs, self.conv_dim, self.norm, self.dtype, self.axis_name, train, valid)
        x = x.reshape(x.shape[0], -1) if self.fc_dims else x.mean((1, 2))
        for i, features in enumerate(self.fc_dims, start=1):
            x = nn.relu(nn.Dense(features, dtype=self.dtype, kernel_init=xavier_fan_in, name=f"fc{i}")(x))
            x = x if keys is None else dropout(x, keys, self.dropout, i)
        return x


def dropout(x: Float[Array, "n f"], keys: Key[Array, " n"], rate: float, layer: int) -> Float[Array, "n f"]:
    """Zero for the share `rate` of each row, the rest enlarged by as much; a row draws from its own key."""
    if rate == 0:
        return x
    draw = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:]))
    return jnp.where(draw(keys), x / (1 - rate), 0)


class BoxPredictor(nn.Module):
    """Class logits (column 0 is background) and box deltas, a class or one for all. Names: cls_score, bbox_pred.

    With `background_output`, as torchvision, `bbox_pred` has deltas for the background in front, which nobody reads.
    With `pooled_deltas`, as in R-CNN, it reads the pooled RoI itself and not what the head makes of it.
    """

    num_classes: int
    class_agnostic: bool = False
    background_output: bool = False
    pooled_deltas: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n f"], rois: Float[Array, "n s s c"] | None = None
    ) -> tuple[Float[Array, "n k1"], Float[Array, "n k_or_1 4"]]:
        x = x.astype(jnp.float32)
        unread = 1 if self.background_output else 0
        boxes = unread + (1 if self.class_agnostic else self.num_classes)
        logits = nn.Dense(self.num_classes + 1, kernel_init=normal(0.01), name="cls_score")(x)
        if self.pooled_deltas and rois is not None:
            x = rois.reshape(rois.shape[0], -1).astype(jnp.float32)
        deltas = nn.Dense(4 * boxes, kernel_init=normal(0.001), name="bbox_pred")(x)
        return logits, deltas.reshape(-1, boxes, 4)[:, unread:]


def conv_row(
    x: Float[Array, "n h w c"],
    num: int,
    dim: int,
    kind: str | None,
    dtype: str,
    axis_name: str | None,
    train: bool,
    valid: Bool[Array, " n"] | None,
) -> Float[Array, "n h w c2"]:
    """The row of 3 x 3 convolutions, each with its norm and ReLU, that box and mask head begin with."""
    extent = cells_of(x, valid)
    for i in range(1, num + 1):
        x = Conv(dim, 3, use_bias=not kind, dtype=dtype, name=f"conv{i}")(x)
        x = nn.relu(norm(kind, name=f"norm{i}", dtype=dtype, axis_name=axis_name)(x, extent, train))
    return x
