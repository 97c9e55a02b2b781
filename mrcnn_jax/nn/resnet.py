"""ResNet (He et al., 2016) and ResNeXt (Xie et al., 2017) as the trunk of a detector."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from mrcnn_jax.nn.conv import Conv, cells_of, halve, max_pool, within
from mrcnn_jax.nn.norm import norm
from mrcnn_jax.types import Pyramid

Layer = Callable[..., nn.Module]


class ResNet(nn.Module):
    """Residual stages over a stride-4 stem; the maps of the stages, at strides 4 to 32, are its output.

    Depth 18, 34, 50, 101 or 152; 10 has one basic block a stage, for tiny runs. `stride_in_1x1` strides in a
    bottleneck's first convolution, as Microsoft's original weights do, instead of its 3 x 3. The first `frozen_stages`
    of (stem, res2, ..., res5) run with constant normalisation and pass no gradient; that their parameters also stay as
    they are is the optimiser's part (weight decay would shrink them). Names: stem/conv1, stem/norm, res2_0/conv1,
    res2_0/norm1, ..., res2_0/shortcut, res2_0/shortcut_norm.
    """

    depth: int = 50
    width: int = 64
    # 4 ends with res5; 3 with res4, where res5 is the common head of all RoIs (C4, `Res5`).
    num_stages: int = 4
    # Keep res5 at stride 16, its 3 x 3 convolutions reading every second cell (DC5).
    dilated: bool = False
    norm: str | None = "frozen_bn"
    norm_eps: float = 1e-5
    stride_in_1x1: bool = False
    frozen_stages: int = 2
    groups: int = 1
    # Channels of a group in res2's 3 x 3 convolution, for a width of 64.
    base_width: int = 64
    # Three 3 x 3 convolutions instead of a 7 x 7 (He et al., "Bag of Tricks", 2019).
    deep_stem: bool = False
    # Start every block as the identity; only where the normalisation is trained.
    zero_init_residual: bool = False
    # Before res4's last block, let every cell look at all others (Wang et al., "Non-local Neural Networks", 2018).
    non_local: bool = False
    # Compute the blocks' inner maps again in the backward pass instead of keeping them.
    remat: bool = False
    dtype: str = "float32"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"], extent: Int[Array, "b 2"] | None, train: bool) -> Pyramid:
        """Maps by level, 2 to 5, from normalised pixels; what they hold beyond `extent` is not read.

        A dilated res5 takes the place of res4, whose stride it has.
        """
        layers = _layers(self)
        trained = train and self.frozen_stages < 1
        x, extent = Stem(self.width, self.deep_stem, **layers, name="stem")(within(x, extent), extent, trained)
        x = x if self.frozen_stages < 1 else lax.stop_gradient(x)

        maps = {}
        for stage in range(2, 2 + self.num_stages):
            dilated = self.dilated and stage == 5
            trained = train and self.frozen_stages < stage
            blocks = _blocks(self, stage, 1 if stage == 2 or dilated else 2, 2 if dilated else 1, layers)
            for i, block in enumerate(blocks):
                if self.non_local and stage == 4 and i == len(blocks) - 1:
                    x = NonLocal(self.dtype, name="res4_non_local")(x, extent)
                x, extent = block(x, extent, trained)
            x = x if self.frozen_stages < stage else lax.stop_gradient(x)
            maps[4 if dilated else stage] = (x, extent)
        return maps


class Res5(nn.Module):
    """The last stage as the common head of all RoIs of a C4 model: [n s s c] to half the side.

    Fields as in `ResNet`. Names: res5_0/conv1, ...
    """

    depth: int = 50
    width: int = 64
    norm: str | None = "frozen_bn"
    norm_eps: float = 1e-5
    stride_in_1x1: bool = False
    groups: int = 1
    base_width: int = 64
    zero_init_residual: bool = False
    remat: bool = False
    dtype: str = "float32"
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n s s c"], train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n s2 s2 c2"]:
        """`valid` tells which RoIs exist, for the statistics of a synchronised BatchNorm; None is all."""
        extent = cells_of(x, valid)
        for block in _blocks(self, 5, 2, 1, _layers(self)):
            x, extent = block(x, extent, train)
        return x


def _layers(net: Any) -> dict[str, Callable]:
    """The convolution and the norm of a network's blocks."""
    return {
        "conv": partial(Conv, use_bias=not net.norm, dtype=net.dtype),
        "norm": partial(norm, net.norm, eps=net.norm_eps, axis_name=net.axis_name, dtype=net.dtype),
    }


def _blocks(net: Any, stage: int, stride: int, dilation: int, layers: dict[str, Callable]) -> list[nn.Module]:
    """The blocks of a stage, named res{stage}_0, ..., inside the network that calls this."""
    block, counts = _depth(net.depth)
    block = nn.remat(block, static_argnums=(3,)) if net.remat else block
    planes = net.width * 2 ** (stage - 2)
    return [
        block(
            planes=planes,
            inner=planes * net.base_width // 64 * net.groups,
            stride=stride if i == 0 else 1,
            dilation=dilation,
            groups=net.groups,
            stride_in_1x1=net.stride_in_1x1,
            last_scale_init=nn.initializers.constant(0.0 if net.zero_init_residual else 1.0),
            **layers,
            name=f"res{stage}_{i}",
        )
        for i in range(counts[stage - 2])
    ]


class Stem(nn.Module):
    """From pixels to the stride-4 map that the first stage reads."""

    width: int
    deep: bool
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Array, extent: Array | None, train: bool) -> tuple[Array, Array | None]:
        half = self.width // 2
        convs = ((half, 3, 2), (half, 3, 1), (self.width, 3, 1)) if self.deep else ((self.width, 7, 2),)
        for i, (features, size, stride) in enumerate(convs, start=1):
            x = self.conv(features, size, stride, name=f"conv{i}")(x)
            extent = halve(extent) if stride == 2 else extent
            x = within(nn.relu(self.norm(name=f"norm{i}" if self.deep else "norm")(x, extent, train)), extent)
        # The last window that reaches beyond the extent still sees the image's last row.
        extent = halve(extent)
        return within(max_pool(x), extent), extent


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: ResNet-18 and -34. What it does not read belongs to bottlenecks."""

    planes: int
    inner: int
    stride: int
    dilation: int
    groups: int
    stride_in_1x1: bool
    last_scale_init: Callable
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Array, extent: Array | None, train: bool) -> tuple[Array, Array | None]:
        after = halve(extent) if self.stride == 2 else extent
        y = self.conv(self.planes, 3, self.stride, name="conv1")(x)
        y = within(nn.relu(self.norm(name="norm1")(y, after, train)), after)
        y = self.conv(self.planes, 3, name="conv2")(y)
        y = self.norm(name="norm2", scale_init=self.last_scale_init)(y, after, train)
        if x.shape != y.shape:
            x = self.conv(self.planes, 1, self.stride, name="shortcut")(x)
            x = self.norm(name="shortcut_norm")(x, after, train)
        return within(nn.relu(x + y), after), after


class Bottleneck(nn.Module):
    """1 x 1 down to `inner` channels, 3 x 3, 1 x 1 up to four times `planes`, and a shortcut: ResNet-50 and deeper."""

    planes: int
    inner: int
    stride: int
    dilation: int
    groups: int
    stride_in_1x1: bool
    last_scale_init: Callable
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Array, extent: Array | None, train: bool) -> tuple[Array, Array | None]:
        after = halve(extent) if self.stride == 2 else extent
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        middle = after if self.stride_in_1x1 else extent
        y = self.conv(self.inner, 1, first, name="conv1")(x)
        y = within(nn.relu(self.norm(name="norm1")(y, middle, train)), middle)
        y = self.conv(self.inner, 3, second, groups=self.groups, dilation=self.dilation, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y, after, train))
        y = self.conv(4 * self.planes, 1, name="conv3")(y)
        y = self.norm(name="norm3", scale_init=self.last_scale_init)(y, after, train)
        if x.shape != y.shape:
            x = self.conv(4 * self.planes, 1, self.stride, name="shortcut")(x)
            x = self.norm(name="shortcut_norm")(x, after, train)
        return within(nn.relu(x + y), after), after


class NonLocal(nn.Module):
    """Adds to every cell what it gathers from all cells of the image, each by its likeness; starts as the identity.

    The embedded Gaussian, which is self-attention, at half the channels; keys and values are read from every second
    cell, the largest of four (Wang et al., 2018, section 3.3). Names: theta, phi, g, out.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        conv = partial(Conv, kernel_size=1, use_bias=True, dtype=self.dtype)
        coarse = within(max_pool(x), halve(extent))
        queries = conv(c // 2, name="theta")(x).reshape(b, h * w, -1)
        keys, values = (conv(c // 2, name=name)(coarse).reshape(b, -1, c // 2) for name in ("phi", "g"))
        exists = within(jnp.ones((b, *coarse.shape[1:3], 1)), halve(extent)).reshape(b, 1, -1) > 0
        likeness = jnp.einsum("bqc,bkc->bqk", queries, keys).astype(jnp.float32) / (c // 2) ** 0.5
        weights = nn.softmax(jnp.where(exists, likeness, -jnp.inf), where=exists).astype(self.dtype)
        gathered = jnp.einsum("bqk,bkc->bqc", weights, values).reshape(b, h, w, -1)
        return x + conv(c, kernel_init=nn.initializers.zeros_init(), name="out")(gathered)


def _depth(depth: int) -> tuple[type[nn.Module], tuple[int, int, int, int]]:
    """The block and the number of blocks of each stage."""
    match depth:
        case 10:
            return BasicBlock, (1, 1, 1, 1)
        case 18:
            return BasicBlock, (2, 2, 2, 2)
        case 34:
            return BasicBlock, (3, 4, 6, 3)
        case 50:
            return Bottleneck, (3, 4, 6, 3)
        case 101:
            return Bottleneck, (3, 4, 23, 3)
        case 152:
            return Bottleneck, (3, 8, 36, 3)
    raise ValueError(f"no ResNet of depth {depth}: there are 10, 18, 34, 50, 101 and 152")
