"""Convolution and max-pooling over NHWC maps, and the extent that keeps padding out of them.

A batch's maps are as large as the largest image's; an image's own map is its top-left `extent`, rows and columns.
Beyond it a map is zero, so that a convolution sees there what it would see if the image were alone: its own zero
padding.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import Initializer
from jaxtyping import Float, Int

# He's initialisation by fan-out, as both reference libraries start convolutions that feed a ReLU ("c2_msra").
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Uniform by fan-in, without a ReLU's gain; Caffe2 calls it "xavier".
xavier_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Conv(nn.Module):
    """A convolution padded by half its kernel on every side, as PyTorch's `padding=k // 2`.

    Flax's 'SAME' pads a stride-2 layer at the bottom and right alone, which would shift every pretrained feature.
    Parameters: `kernel` [k k in/groups out] and `bias` [out], float32; the product is taken in `dtype`.
    """

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: str = "float32"
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        k = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (k, k, x.shape[-1] // self.groups, self.features))
        x = conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.groups)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            x = x + bias.astype(self.dtype)[None, None, None]
        return x


def conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k cg c2"], stride: int = 1, groups: int = 1
) -> Float[Array, "b h2 w2 c2"]:
    """The convolution itself, zero-padded by k // 2."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """The largest of each 3 x 3 window at stride 2, padded by one row or column of -inf, as in a ResNet's stem.

    Zeros beyond an extent stand for -inf when nothing is negative, which holds after a ReLU.
    """
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def within(x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None) -> Float[Array, "b h w c"]:
    """`x`, and zero beyond its extent whatever was there."""
    if extent is None:
        return x
    rows = jnp.arange(x.shape[1])[None, :, None, None] < extent[:, 0, None, None, None]
    columns = jnp.arange(x.shape[2])[None, None, :, None] < extent[:, 1, None, None, None]
    return jnp.where(rows & columns, x, jnp.zeros_like(x))


def halve(extent: Int[Array, "b 2"] | None) -> Int[Array, "b 2"] | None:
    """The extent after a layer of stride 2: half of it, rounded up."""
    return None if extent is None else (extent + 1) // 2
