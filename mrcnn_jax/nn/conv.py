"""Convolution and max-pooling over NHWC maps, and the extent that keeps padding out of them.

A batch's maps are as large as the largest image's; an image's own map is its top-left `extent`, rows and columns.
Beyond it a map is zero, so that a convolution sees there what it would see if the image were alone: its own zero
padding.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import Initializer
from jaxtyping import Bool, Float, Int

# He's initialisation by fan-out, as both reference libraries start convolutions that feed a ReLU ("c2_msra").
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Uniform by fan-in, without a ReLU's gain; Caffe2 calls it "xavier".
xavier_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Conv(nn.Module):
    """A convolution padded by half its kernel's reach on every side, as PyTorch's `padding=dilation * (k // 2)`.

    Or not at all, with `padding` "valid".

    Flax's 'SAME' pads a stride-2 layer at the bottom and right alone, which would shift every pretrained feature.
    Parameters: `kernel` [k k in/groups out] and `bias` [out], float32; the product is taken in `dtype`.
    """

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    use_bias: bool = False
    padding: Literal["half", "valid"] = "half"
    dtype: str = "float32"
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        k = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (k, k, x.shape[-1] // self.groups, self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.padding == "half":
            x = conv(x, kernel, self.stride, self.groups, self.dilation)
        else:
            x = _conv(x, kernel, self.stride, self.groups, self.dilation, pad=0)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            x = x + bias.astype(self.dtype)[None, None, None]
        return x


def conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k cg c2"], stride: int = 1, groups: int = 1, dilation: int = 1
) -> Float[Array, "b h2 w2 c2"]:
    """The convolution itself, zero-padded by `dilation * (k // 2)`."""
    _, _, c, features = kernel.shape
    if kernel.shape[0] == 1 and groups == 1:
        # A 1 x 1 convolution is a matrix product, and as one its gradients are 1.4 to 3 times as fast on a CPU.
        x = x[:, ::stride, ::stride]
        return lax.dot(x.reshape(-1, c), kernel[0, 0]).reshape(*x.shape[:3], features)
    # These two differ in their gradients alone. An exported program, whose batch may be of any size, has none.
    if kernel.shape[0] == 3 and stride == groups == dilation == 1 and isinstance(x.shape[0], int):
        cells = x.shape[0] * x.shape[1] * x.shape[2]
        if min(c, features) >= 128 and cells >= 8192:
            return _wide_conv(x, kernel)
        if min(c, features) >= 256 and cells <= 256:
            return _deep_conv(x, kernel)
    return _conv(x, kernel, stride, groups, dilation)


def _conv(
    x: Array, kernel: Array, stride: int = 1, groups: int = 1, dilation: int = 1, pad: int | None = None
) -> Array:
    pad = dilation * (kernel.shape[0] // 2) if pad is None else pad
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@jax.custom_vjp
def _wide_conv(x: Array, kernel: Array) -> Array:
    """A 3 x 3 convolution of stride 1 whose weight gradient, on a CPU, is nine matrix products.

    XLA's own falls off a cliff there where channels and maps are both large: 1.7 to 5 times slower at 256 channels on
    2 x 80 x 112 cells or on 64 RoIs. On smaller ones it is the faster.
    """
    return _conv(x, kernel)


def _forward_keeping_both(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel), (x, kernel)


def _wide_conv_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    (to_x,) = jax.linear_transpose(lambda x: _conv(x, kernel), x)(g)
    return to_x, lax.platform_dependent(x, g, cpu=_nine_products, default=_weight_gradient)


_wide_conv.defvjp(_forward_keeping_both, _wide_conv_backward)


def _weight_gradient(x: Array, g: Array) -> Array:
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _conv(x, kernel), kernel)(g)[0]


def _nine_products(x: Array, g: Array) -> Array:
    """The same gradient: the input, shifted to where each tap of the kernel reads it, times the output's gradient."""
    _, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = g.reshape(-1, g.shape[-1])
    taps = [x[:, i : i + h, j : j + w].reshape(-1, c).T @ rows for i in range(3) for j in range(3)]
    return jnp.stack(taps).reshape(3, 3, c, -1)


@jax.custom_vjp
def _deep_conv(x: Array, kernel: Array) -> Array:
    """A 3 x 3 convolution of stride 1 with more channels than cells, whose gradients, on a CPU, are matrix products.

    XLA turns the whole kernel around in memory first, which costs it several times the products.
    """
    return _conv(x, kernel)


def _deep_conv_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = residuals

    def on_cpu(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        return _spread(kernel, g), _nine_products(x, g)

    def elsewhere(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda x, kernel: _conv(x, kernel), x, kernel)[1](g)

    return lax.platform_dependent(x, kernel, g, cpu=on_cpu, default=elsewhere)


_deep_conv.defvjp(_forward_keeping_both, _deep_conv_backward)


def _spread(kernel: Array, g: Array) -> Array:
    """The gradient by the input: what every tap of every output cell sends back, added where the tap had read."""
    b, h, w, features = g.shape
    sent = lax.dot_general(
        g.reshape(-1, features),
        kernel.reshape(-1, features),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    sent = sent.reshape(b, h, w, 3, 3, -1)
    places = [
        jnp.pad(sent[:, :, :, i, j], ((0, 0), (i, 2 - i), (j, 2 - j), (0, 0))) for i in range(3) for j in range(3)
    ]
    return sum(places[1:], places[0])[:, 1:-1, 1:-1].astype(g.dtype)


def max_pool(x: Float[Array, "b h w c"], pad: int = 1) -> Float[Array, "b h2 w2 c"]:
    """The largest of each 3 x 3 window at stride 2, padded by one row or column of -inf, as in a ResNet's stem, or not.

    Zeros beyond an extent stand for -inf when nothing is negative, which holds after a ReLU. Equal maxima share the
    gradient. Written as maxima of slices, since the gradient of XLA's pooling is 7 to 12 times slower on a CPU.
    """
    return _max_of_three(_max_of_three(x, 1, pad), 2, pad)


def _max_of_three(x: Array, axis: int, pad: int) -> Array:
    size = (x.shape[axis] + 2 * pad - 1) // 2
    pads = [(0, 0)] * x.ndim
    pads[axis] = (pad, pad)
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    a, b, c = (lax.slice_in_dim(x, i, i + 2 * size - 1, 2, axis) for i in range(3))
    return jnp.maximum(jnp.maximum(a, b), c)


def within(x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None) -> Float[Array, "b h w c"]:
    """`x`, and zero beyond its extent whatever was there."""
    if extent is None:
        return x
    rows = jnp.arange(x.shape[1])[None, :, None, None] < extent[:, 0, None, None, None]
    columns = jnp.arange(x.shape[2])[None, None, :, None] < extent[:, 1, None, None, None]
    return jnp.where(rows & columns, x, jnp.zeros_like(x))


def halve(extent: Int[Array, "b 2"] | None) -> Int[Array, "b 2"] | None:
    """The extent after a layer of stride 2: half of it, rounded up."""
    return None if extent is None else (extent + 1) >> 1


def cells_of(x: Float[Array, "n h w c"], valid: Bool[Array, " n"] | None) -> Int[Array, "n 2"] | None:
    """The extents of RoI features: all of the map, or none of it for an RoI that does not exist, which no statistics
    then see. None for None, which is all RoIs.
    """
    return None if valid is None else jnp.where(valid[:, None], jnp.array(x.shape[1:3])[None], 0)
