"""The plain networks from before ResNets, layer by layer as a table: AlexNet, ZF, VGG_CNN_M_1024, VGG-16.

As Caffe has them: AlexNet is its CaffeNet, with the pooling before the normalisation. Their fully connected layers are
the box head's.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from mrcnn_jax.nn.conv import Conv, halve, max_pool, within
from mrcnn_jax.types import Pyramid


class ConvLayer(NamedTuple):
    """A convolution and its ReLU; the name begins with its stage: conv3_1 is of stage 3."""

    name: str
    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1


class PoolLayer(NamedTuple):
    """Max-pooling of stride 2."""

    kernel: int


class NormLayer(NamedTuple):
    """Local response normalisation: x / (bias + alpha * mean of x^2)^beta (Krizhevsky et al., 2012, section 3.3)."""

    size: int
    alpha: float
    bias: float = 1.0
    # The mean over the neighbouring cells of the same channel, instead of the neighbouring channels.
    within_channel: bool = False


def _vgg(*stages: tuple[int, int]) -> tuple:
    layers = []
    for stage, (count, features) in enumerate(stages, start=1):
        layers += [PoolLayer(2)] if stage > 1 else []
        layers += [ConvLayer(f"conv{stage}_{i}", features) for i in range(1, count + 1)]
    return tuple(layers)


# Up to the last convolution, whose stride is 16.
LAYERS = {
    "alexnet": (
        ConvLayer("conv1", 96, 11, 4), PoolLayer(3), NormLayer(5, 1e-4),
        ConvLayer("conv2", 256, 5, groups=2), PoolLayer(3), NormLayer(5, 1e-4),
        ConvLayer("conv3", 384), ConvLayer("conv4", 384, groups=2), ConvLayer("conv5", 256, groups=2),
    ),
    "zf": (
        ConvLayer("conv1", 96, 7, 2), NormLayer(3, 5e-5, within_channel=True), PoolLayer(3),
        ConvLayer("conv2", 256, 5, 2), NormLayer(3, 5e-5, within_channel=True), PoolLayer(3),
        ConvLayer("conv3", 384), ConvLayer("conv4", 384), ConvLayer("conv5", 256),
    ),
    "vgg_m": (
        ConvLayer("conv1", 96, 7, 2), NormLayer(5, 5e-4, bias=2.0), PoolLayer(3),
        ConvLayer("conv2", 256, 5, 2), NormLayer(5, 5e-4, bias=2.0), PoolLayer(3),
        ConvLayer("conv3", 512), ConvLayer("conv4", 512), ConvLayer("conv5", 512),
    ),
    "vgg16": _vgg((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
    # For a laptop; from no paper.
    "small": _vgg((1, 16), (1, 32), (1, 64), (1, 128), (1, 128)),
}  # fmt: skip
# Of the pooling behind the last convolution, which RoIPool takes the place of in a detector.
LAST_POOL = {"alexnet": 3, "zf": 3, "vgg_m": 3, "vgg16": 2, "small": 2}


class PlainNet(nn.Module):
    """One of `LAYERS` as the backbone of a detector: a map at stride 16.

    Strided layers are padded by half their kernel, as in Fast R-CNN's CaffeNet and ZF, so that a map of n cells becomes
    one of n / 2, rounded up. (Fast R-CNN's VGG_CNN_M_1024 leaves some padding out, which shifts its map slightly.)
    The first `frozen_stages` stages pass no gradient. Names: conv1, ..., or conv1_1, ...
    """

    kind: str = "vgg16"
    frozen_stages: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"], extent: Int[Array, "b 2"] | None, train: bool) -> Pyramid:
        """{4: map} from normalised pixels; what they hold beyond `extent` is not read."""
        del train
        x = within(x, extent)
        for layer in LAYERS[self.kind]:
            if isinstance(layer, ConvLayer):
                extent = halve(halve(extent)) if layer.stride == 4 else halve(extent) if layer.stride == 2 else extent
                x = within(_conv(layer, self.dtype)(x), extent)
                x = x if _stage(layer) > self.frozen_stages else lax.stop_gradient(x)
            elif isinstance(layer, PoolLayer):
                extent = halve(extent)
                # Zeros beyond the extent do not matter, since nothing is negative.
                x = within(max_pool(x) if layer.kernel == 3 else _max_of_two_by_two(x), extent)
            else:
                x = local_response_norm(x, layer)
        return {4: (x, extent)}


class PlainTrunk(nn.Module):
    """One of `LAYERS` and its last pooling over warped regions, as it was trained to classify images (R-CNN).

    Without padding where a layer strides: of AlexNet 227 x 227 pixels become 6 x 6 cells, of VGG-16 224 x 224 become
    7 x 7. Names as in `PlainNet`.
    """

    kind: str = "alexnet"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n s s 3"], train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n s2 s2 c"]:
        """Without norms that have statistics, neither `train` nor which regions exist makes a difference."""
        del train, valid
        for layer in (*LAYERS[self.kind], PoolLayer(LAST_POOL[self.kind])):
            if isinstance(layer, ConvLayer):
                x = _conv(layer, self.dtype, "valid" if layer.stride > 1 else "half")(x)
            elif isinstance(layer, PoolLayer):
                x = max_pool(x, pad=0) if layer.kernel == 3 else _max_of_two_by_two(x)
            else:
                x = local_response_norm(x, layer)
        return x


def _conv(layer: ConvLayer, dtype: str, padding: str = "half"):
    conv = Conv(
        layer.features, layer.kernel, layer.stride, layer.groups, use_bias=True, padding=padding, dtype=dtype,
        name=layer.name,
    )  # fmt: skip
    return lambda x: nn.relu(conv(x))


def _stage(layer: ConvLayer) -> int:
    return int(layer.name.removeprefix("conv").partition("_")[0])


def _max_of_two_by_two(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """The largest of each 2 x 2 window; where a side is odd, of what is left at its end (Caffe rounds up)."""
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), constant_values=-jnp.inf)
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def local_response_norm(x: Float[Array, "b h w c"], layer: NormLayer) -> Float[Array, "b h w c"]:
    """Each value divided by a power of the mean square of its neighbourhood; Caffe's LRN, in float32."""
    n = layer.size
    window = (1, n, n, 1) if layer.within_channel else (1, 1, 1, n)
    squares = jnp.square(x.astype(jnp.float32))
    mean = lax.reduce_window(squares, 0.0, lax.add, window, (1, 1, 1, 1), "SAME") / (
        n * n if layer.within_channel else n
    )
    return (x.astype(jnp.float32) * (layer.bias + layer.alpha * mean) ** -0.75).astype(x.dtype)
