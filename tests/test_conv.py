from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.nn import conv as layers
from mrcnn_jax.nn.conv import Conv, conv, halve, max_pool, within

GOLDEN = np.load(Path(__file__).parent / "golden" / "nn_layers.npz")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def plain_conv(x, kernel, stride):
    """PyTorch's convolution with padding k // 2, one output cell at a time."""
    k, _, _, features = kernel.shape
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    height, width = (x.shape[1] - k) // stride + 1, (x.shape[2] - k) // stride + 1
    y = np.zeros((x.shape[0], height, width, features))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            y[:, i, j] = np.einsum("bijc,ijcd->bd", window, kernel)
    return y


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 8, 6, 5), (1, 7, 9, 5)])
def test_padding_is_that_of_pytorch(size, stride, shape):
    x, kernel = normal(*shape), normal(size, size, 5, 4)
    np.testing.assert_allclose(conv(x, kernel, stride), plain_conv(x, kernel, stride), rtol=1e-4, atol=1e-5)


def test_groups_see_only_their_own_channels():
    x, kernel = normal(1, 5, 5, 6), normal(3, 3, 2, 9)
    expected = [plain_conv(x[..., 2 * i : 2 * i + 2], kernel[..., 3 * i : 3 * i + 3], 1) for i in range(3)]
    np.testing.assert_allclose(conv(x, kernel, groups=3), np.concatenate(expected, -1), rtol=1e-4, atol=1e-5)


def test_layer_keeps_float32_parameters_and_computes_in_its_dtype():
    x = normal(1, 4, 4, 3)
    y, variables = Conv(8, 3, use_bias=True, dtype="bfloat16").init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {k: (v.shape, v.dtype) for k, v in variables["params"].items()} == {
        "kernel": ((3, 3, 3, 8), jnp.float32),
        "bias": ((8,), jnp.float32),
    }
    assert "bias" not in Conv(8, 3).init(jax.random.key(0), x)["params"]


@pytest.mark.parametrize("shape", [(1, 4, 4, 3), (2, 5, 9, 4), (3, 1, 2, 2)])
def test_nine_products_are_the_weight_gradient(shape):
    x, g = normal(*shape), normal(*shape[:3], 6)
    np.testing.assert_allclose(layers._nine_products(x, g), layers._weight_gradient(x, g), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 64, 64, 128, 128), (2, 3, 5, 256, 288)], ids=["wide", "deep"])
def test_wide_and_deep_convolutions_have_the_gradients_of_any_other(shape):
    *cells, c, features = shape
    x, kernel, g = normal(*cells, c), normal(3, 3, c, features), normal(*cells, features)

    def gradients(function):
        return jax.jit(lambda x, kernel: jax.vjp(function, x, kernel)[1](g))(x, kernel)

    assert "custom_vjp" in str(jax.make_jaxpr(conv)(x, kernel))
    for ours, reference in zip(gradients(conv), gradients(lambda *a: layers._conv(*a, 1, 1)), strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5 * float(jnp.abs(reference).max()))


def test_small_convolution_is_left_to_xla():
    assert "custom_vjp" not in str(jax.make_jaxpr(conv)(normal(2, 64, 64, 64), normal(3, 3, 64, 64)))


def test_max_pool_equals_torch():
    x = jnp.asarray(GOLDEN["in"].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(max_pool(x), GOLDEN["maxpool_3_2_1"].transpose(0, 2, 3, 1))


@pytest.mark.parametrize("shape", [(1, 8, 6, 3), (2, 7, 9, 2), (1, 1, 2, 1)])
def test_max_pool_gradient_goes_to_the_maximum(shape):
    x = normal(*shape)

    def gradient(pool):
        return jax.grad(lambda x: jnp.sum(jnp.square(pool(x))))(x)

    def reference(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    np.testing.assert_allclose(gradient(max_pool), gradient(reference), rtol=1e-6)


def test_within_replaces_whatever_lies_beyond():
    x = normal(2, 4, 5, 3)
    extent = jnp.array([[2, 5], [4, 1]])
    poisoned = x.at[0, 2:].set(jnp.nan).at[1, :, 1:].set(jnp.inf)
    expected = x.at[0, 2:].set(0).at[1, :, 1:].set(0)
    np.testing.assert_array_equal(within(poisoned, extent), expected)
    assert np.isfinite(jax.grad(lambda x: jnp.sum(jnp.square(within(x, extent))))(poisoned)).all()
    assert within(x, None) is x


def test_halve_rounds_up():
    np.testing.assert_array_equal(halve(jnp.array([[1, 2], [7, 8]])), [[1, 1], [4, 4]])
    assert halve(None) is None
