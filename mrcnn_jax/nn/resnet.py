"""ResNet (He et al., 2016) and ResNeXt (Xie et al., 2017) as the trunk of a feature pyramid."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
from jax import Array, lax
from jaxtyping import Float, Int

from mrcnn_jax.nn.conv import Conv, halve, max_pool, within
from mrcnn_jax.nn.norm import norm
from mrcnn_jax.types import Pyramid

Layer = Callable[..., nn.Module]


class ResNet(nn.Module):
    """Four residual stages over a stride-4 stem; the maps of the stages, at strides 4 to 32, are its output.

    Depth 18, 34, 50 or 101; 10 has one basic block a stage, for tiny runs. `stride_in_1x1` strides in a bottleneck's
    first convolution, as Microsoft's original weights do, instead of its 3 x 3. The first `frozen_stages` of (stem,
    res2, ..., res5) run with constant normalisation and pass no gradient; that their parameters also stay as they are
    is the optimiser's part (weight decay would shrink them). Names: stem/conv1, stem/norm, res2_0/conv1, res2_0/norm1,
    ..., res2_0/shortcut, res2_0/shortcut_norm.
    """

    depth: int = 50
    width: int = 64
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
    # Compute the blocks' inner maps again in the backward pass instead of keeping them.
    remat: bool = False
    dtype: str = "float32"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"], extent: Int[Array, "b 2"] | None, train: bool) -> Pyramid:
        """Maps by level, 2 to 5, from normalised pixels; what they hold beyond `extent` is not read."""
        block, counts = _depth(self.depth)
        layers = {
            "conv": partial(Conv, use_bias=not self.norm, dtype=self.dtype),
            "norm": partial(norm, self.norm, eps=self.norm_eps, axis_name=self.axis_name, dtype=self.dtype),
        }
        trained = train and self.frozen_stages < 1
        x, extent = Stem(self.width, self.deep_stem, **layers, name="stem")(within(x, extent), extent, trained)
        x = x if self.frozen_stages < 1 else lax.stop_gradient(x)

        block = nn.remat(block, static_argnums=(3,)) if self.remat else block
        maps = {}
        for stage, count in enumerate(counts):
            level, planes = stage + 2, self.width * 2**stage
            trained = train and self.frozen_stages < level
            for i in range(count):
                x, extent = block(
                    planes=planes,
                    inner=planes * self.base_width // 64 * self.groups,
                    stride=2 if stage > 0 and i == 0 else 1,
                    groups=self.groups,
                    stride_in_1x1=self.stride_in_1x1,
                    last_scale_init=nn.initializers.constant(0.0 if self.zero_init_residual else 1.0),
                    **layers,
                    name=f"res{level}_{i}",
                )(x, extent, trained)
            x = x if self.frozen_stages < level else lax.stop_gradient(x)
            maps[level] = (x, extent)
        return maps


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
    """Two 3 x 3 convolutions and a shortcut: ResNet-18 and -34. `inner` and `stride_in_1x1` belong to bottlenecks."""

    planes: int
    inner: int
    stride: int
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
        y = self.conv(self.inner, 3, second, groups=self.groups, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y, after, train))
        y = self.conv(4 * self.planes, 1, name="conv3")(y)
        y = self.norm(name="norm3", scale_init=self.last_scale_init)(y, after, train)
        if x.shape != y.shape:
            x = self.conv(4 * self.planes, 1, self.stride, name="shortcut")(x)
            x = self.norm(name="shortcut_norm")(x, after, train)
        return within(nn.relu(x + y), after), after


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
    raise ValueError(f"no ResNet of depth {depth}: there are 10, 18, 34, 50 and 101")
