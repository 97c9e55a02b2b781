"""The plain networks: sizes, counts of parameters, padding, and local response normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.nn.plain import NormLayer, PlainNet, PlainTrunk, local_response_norm


def shapes(module, *inputs):
    return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), *inputs))


# Counted by hand from the papers' tables; torchvision's vgg16.features has as many.
@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("alexnet", 2_334_080), ("zf", 3_726_464), ("vgg_m", 6_528_640), ("vgg16", 14_714_688), ("small", 245_024)],
)
def test_backbone_has_stride_16_and_its_parameters(kind, parameters):
    pyramid, variables = shapes(
        PlainNet(kind), jnp.zeros((2, 600, 1001, 3)), jnp.asarray([[600, 1001], [33, 65]]), True
    )
    assert list(pyramid) == [4]
    assert pyramid[4][0].shape[:3] == (2, 38, 63)
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(variables)) == parameters


@pytest.mark.parametrize(
    ("kind", "side", "cells", "channels"), [("alexnet", 227, 6, 256), ("vgg16", 224, 7, 512), ("small", 64, 2, 128)]
)
def test_trunk_sees_what_the_classifier_saw(kind, side, cells, channels):
    out, variables = shapes(PlainTrunk(kind), jnp.zeros((3, side, side, 3)), True)
    assert out.shape == (3, cells, cells, channels)
    _, as_backbone = shapes(PlainNet(kind), jnp.zeros((1, 64, 64, 3)), None, True)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, as_backbone)


@pytest.mark.parametrize("kind", ["small", "zf"])
def test_an_image_in_a_larger_array_is_seen_as_if_alone(kind):
    net = PlainNet(kind)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.standard_normal((1, 50, 37, 3)), jnp.float32)
    variables = jax.jit(net.init, static_argnums=3)(jax.random.key(0), image, None, True)
    apply = jax.jit(net.apply, static_argnums=3)
    alone, _ = apply(variables, image, None, False)[4]
    padded = jnp.pad(image, ((0, 0), (0, 14), (0, 43), (0, 0)), constant_values=jnp.nan)
    together, extent = apply(variables, padded, jnp.asarray([[50, 37]]), False)[4]
    np.testing.assert_array_equal(extent, [[4, 3]])
    np.testing.assert_allclose(together[:, :4, :3], alone, rtol=1e-5, atol=1e-6)
    assert np.abs(alone).max() > 0.1
    assert not np.any(together[:, 4:])
    assert not np.any(together[:, :, 3:])


def test_frozen_stages_pass_no_gradient():
    net = PlainNet("small", frozen_stages=2)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 32, 32, 3)), jnp.float32)
    params = net.init(jax.random.key(0), x, None, True)["params"]
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(net.apply({"params": params}, x, None, True)[4][0])))(params)
    moved = {name for name, layer in gradient.items() if np.any(layer["kernel"])}
    assert moved == {"conv3_1", "conv4_1", "conv5_1"}


@pytest.mark.parametrize("within_channel", [False, True])
def test_local_response_norm_equals_numpy(within_channel):
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 7)).astype(np.float32) * 30
    layer = NormLayer(3, 0.5, bias=2.0, within_channel=within_channel)
    expected = np.empty_like(x)
    for b, i, j, c in np.ndindex(x.shape):
        if within_channel:
            squares = x[b, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2, c] ** 2 / 9
        else:
            squares = x[b, i, j, max(c - 1, 0) : c + 2] ** 2 / 3
        expected[b, i, j, c] = x[b, i, j, c] / (2 + 0.5 * squares.sum()) ** 0.75
    np.testing.assert_allclose(
        jax.jit(local_response_norm, static_argnums=1)(jnp.asarray(x), layer), expected, rtol=1e-5
    )
