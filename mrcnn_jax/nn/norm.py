"""Normalisation whose statistics see nothing but the image: not its padding, not the other devices' padding.

Every layer is called as `norm(x, extent, train)`.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import Initializer
from jaxtyping import Float, Int

from mrcnn_jax.nn.conv import within

KINDS = ("frozen_bn", "bn", "gn")
ONES, ZEROS = nn.initializers.ones_init(), nn.initializers.zeros_init()


def norm(
    kind: str | None,
    *,
    name: str,
    eps: float = 1e-5,
    axis_name: str | None = None,
    dtype: str = "float32",
    scale_init: Initializer = ONES,
) -> Callable[[Array, Array | None, bool], Array]:
    """The layer of a kind: 'frozen_bn', 'bn', 'gn', or None for the identity.

    `axis_name` is the mesh axis over which 'bn' takes its statistics. Raises `ValueError` for another kind.
    """
    match kind:
        case None | "":
            return lambda x, extent, train: x
        case "frozen_bn":
            return FrozenBatchNorm(eps=eps, dtype=dtype, name=name)
        case "bn":
            return BatchNorm(eps=eps, dtype=dtype, scale_init=scale_init, axis_name=axis_name, name=name)
        case "gn":
            return GroupNorm(eps=eps, dtype=dtype, scale_init=scale_init, name=name)
    raise ValueError(f"norm '{kind}' is none of {', '.join(KINDS)}")


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with everything constant: x * w + b with w and b folded from four float32 buffers.

    The buffers `scale`, `bias`, `mean` and `var` are in `batch_stats`: neither reference library counts them as
    parameters. eps is 1e-5 in both, but torchvision's published v1 detectors were trained with, and need, 0.
    """

    eps: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None, train: bool) -> Array:
        buffer = partial(self.variable, "batch_stats")
        one, zero = jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1])
        scale, bias = buffer("scale", lambda: one).value, buffer("bias", lambda: zero).value
        mean, var = buffer("mean", lambda: zero).value, buffer("var", lambda: one).value
        weight = scale * lax.rsqrt(var + self.eps)
        return _affine(x, weight, bias - mean * weight, self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy, 2015), synchronised over a mesh axis and blind to padding.

    In training, the statistics are those of all cells inside the extents, on all devices of `axis_name`; the running
    ones in `batch_stats` move towards them by `1 - momentum` where that collection is mutable. As in PyTorch, the
    running variance is the unbiased one, and `num_batches` counts. In evaluation the running ones are used.
    """

    eps: float = 1e-5
    momentum: float = 0.9
    dtype: str = "float32"
    scale_init: Initializer = ONES
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None, train: bool) -> Array:
        c = x.shape[-1]
        scale, bias = self.param("scale", self.scale_init, (c,)), self.param("bias", ZEROS, (c,))
        running_mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(c))
        running_var = self.variable("batch_stats", "var", lambda: jnp.ones(c))
        num_batches = self.variable("batch_stats", "num_batches", lambda: jnp.zeros((), jnp.int32))
        if train:
            x = within(x, extent)
            count, mean, squares = self._over_devices(*_moments(x, extent))
            var = squares / jnp.maximum(count, 1.0)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                unbiased = squares / jnp.maximum(count - 1.0, 1.0)
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
                num_batches.value = num_batches.value + 1
        else:
            mean, var = running_mean.value, running_var.value
        weight = scale * lax.rsqrt(var + self.eps)
        return _affine(x, weight, bias - mean * weight, self.dtype)

    def _over_devices(self, count: Array, mean: Array, squares: Array) -> tuple[Array, Array, Array]:
        """The same three of all devices together (Chan et al., 1979): one collective, and one for gradients."""
        if self.axis_name is None:
            return count, mean, squares
        rows = jnp.stack([jnp.broadcast_to(count, mean.shape), mean, squares])
        counts, means, squares = jnp.moveaxis(lax.all_gather(rows, self.axis_name), 1, 0)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / jnp.maximum(count, 1.0)
        return count, mean, (squares + counts * jnp.square(means - mean[None])).sum(0)


def _moments(x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None) -> tuple[Array, Array, Array]:
    """The number of cells inside the extents, their mean, and the sum of their squares around it; `x` is 0 beyond."""
    x = x.astype(jnp.float32)
    count = jnp.sum(_area(x, extent))
    mean = jnp.sum(x, (0, 1, 2)) / jnp.maximum(count, 1.0)
    return count, mean, jnp.sum(jnp.square(within(x - mean[None, None, None], extent)), (0, 1, 2))


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He, 2018) over the cells inside an image's extent.

    32 groups as published; a map whose channels 32 does not divide has their greatest common divisor.
    """

    groups: int = 32
    eps: float = 1e-5
    dtype: str = "float32"
    scale_init: Initializer = ONES

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None, train: bool) -> Array:
        b, _, _, c = x.shape
        groups = math.gcd(self.groups, c)
        scale, bias = self.param("scale", self.scale_init, (c,)), self.param("bias", ZEROS, (c,))
        x = within(x, extent)
        count = jnp.maximum(_area(x, extent), 1.0)[:, None]

        def group_mean(total: Float[Array, "b c"]) -> Float[Array, "b c"]:
            """Totals of channels over cells to the mean over the group's cells, for each channel."""
            mean = total.reshape(b, groups, -1).mean(-1) / count
            return jnp.repeat(mean, c // groups, axis=1)

        mean = group_mean(jnp.sum(x.astype(jnp.float32), (1, 2)))
        deviation = within(x.astype(jnp.float32) - mean[:, None, None], extent)
        var = group_mean(jnp.sum(jnp.square(deviation), (1, 2)))
        weight = scale[None] * lax.rsqrt(var + self.eps)
        return _affine(x, weight, bias[None] - mean * weight, self.dtype)


def _area(x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None) -> Float[Array, " b"]:
    """The number of cells inside the extent of each image."""
    if extent is None:
        return jnp.full(x.shape[0], x.shape[1] * x.shape[2], jnp.float32)
    return jnp.prod(jnp.minimum(extent, jnp.array(x.shape[1:3])[None]), axis=1).astype(jnp.float32)


def _affine(x: Float[Array, "b h w c"], weight: Array, bias: Array, dtype: str) -> Array:
    """x * weight + bias in float32, for one row of channels or one an image."""
    weight, bias = (v.reshape(-1, 1, 1, x.shape[-1]) for v in (weight, bias))
    return (x.astype(jnp.float32) * weight + bias).astype(dtype)
