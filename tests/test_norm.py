from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mrcnn_jax.nn.norm import BatchNorm, FrozenBatchNorm, GroupNorm, norm

GOLDEN = np.load(Path(__file__).parent / "golden" / "nn_layers.npz")
KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1.0, 2.0, size=shape), jnp.float32)


def randomised(variables):
    """The same variables with values that are not ones and zeros."""
    leaves, tree = jax.tree.flatten(variables)
    return jax.tree.unflatten(tree, [1.5 + 0.3 * normal(*leaf.shape, seed=i) ** 2 for i, leaf in enumerate(leaves)])


@pytest.mark.parametrize(("eps", "name"), [(0.0, "frozen_bn_eps0"), (1e-5, "frozen_bn_eps1e-5")])
def test_frozen_batch_norm_equals_torchvision(eps, name):
    buffers = {"scale": [0.7, -1.2], "bias": [0.1, 0.2], "mean": [0.3, -0.4], "var": [1e-3, 2.0]}
    variables = {"batch_stats": {k: jnp.array(v) for k, v in buffers.items()}}
    y = FrozenBatchNorm(eps=eps).apply(variables, jnp.asarray(GOLDEN["in"].transpose(0, 2, 3, 1)), None, True)
    np.testing.assert_allclose(y, GOLDEN[name].transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


def test_frozen_batch_norm_has_no_parameters():
    variables = FrozenBatchNorm().init(KEY, normal(1, 2, 2, 4), None, True)
    assert set(variables) == {"batch_stats"}
    assert set(variables["batch_stats"]) == {"scale", "bias", "mean", "var"}


def test_group_norm_is_that_of_each_group():
    x = normal(2, 5, 6, 64)
    variables = randomised(GroupNorm().init(KEY, x, None, True))
    groups = np.asarray(x, np.float64).reshape(2, 5, 6, 32, 2)
    mean, var = groups.mean((1, 2, 4), keepdims=True), groups.var((1, 2, 4), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    expected = expected * np.asarray(variables["params"]["scale"]) + np.asarray(variables["params"]["bias"])
    np.testing.assert_allclose(GroupNorm().apply(variables, x, None, True), expected, atol=2e-5)


def test_group_norm_takes_channels_that_32_does_not_divide():
    assert GroupNorm().init_with_output(KEY, normal(1, 3, 3, 24), None, True)[0].shape == (1, 3, 3, 24)


def test_batch_norm_trains_on_the_batch_and_moves_the_running_statistics_as_torch():
    x = normal(2, 3, 4, 5)
    variables = BatchNorm().init(KEY, x, None, True)
    y, updates = BatchNorm().apply(variables, x, None, True, mutable=["batch_stats"])
    x = np.asarray(x)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 + 0.1 * var * 24 / 23, rtol=1e-5)


def test_batch_norm_evaluates_on_the_running_statistics():
    x = normal(2, 3, 4, 5)
    variables = randomised(BatchNorm().init(KEY, x, None, True))
    p, s = (jax.tree.map(np.asarray, variables[k]) for k in ("params", "batch_stats"))
    expected = (np.asarray(x) - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]
    y, updates = BatchNorm().apply(variables, x, None, False, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(updates["batch_stats"]["mean"], s["mean"])


@pytest.mark.parametrize("kind", ["frozen_bn", "bn", "gn"])
@pytest.mark.parametrize("filling", [7.0, 1e6, np.nan])
def test_padding_changes_neither_output_nor_gradient(kind, filling):
    layer = norm(kind, name="norm")
    inner = normal(2, 4, 6, 32)
    variables = randomised(layer.init(KEY, inner, None, True))
    padded = jnp.full((2, 7, 8, 32), filling).at[:, :4, :6].set(inner)
    extent = jnp.array([[4, 6], [4, 6]])

    def loss(params, x, extent):
        y, updates = layer.apply({**variables, "params": params}, x, extent, True, mutable=["batch_stats"])
        y = y[:, :4, :6]
        return jnp.sum(jnp.sin(y)), (y, updates)

    run = jax.grad(loss, argnums=(0, 1), has_aux=True)
    params = variables.get("params", {})
    (grads, to_x), aux = run(params, inner, None)
    (padded_grads, padded_to_x), padded_aux = run(params, padded, extent)
    check = partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)
    jax.tree.map(check, (grads, aux), (padded_grads, padded_aux))
    check(to_x, padded_to_x[:, :4, :6])
    assert not np.any(padded_to_x[:, 4:])
    assert not np.any(padded_to_x[:, :, 6:])


def test_batch_norm_over_devices_is_that_of_the_whole_batch():
    x, coefficients = normal(4, 3, 5, 6), normal(4, 3, 5, 6, seed=1)
    extent = jnp.array([[3, 5], [2, 5], [0, 0], [3, 1]])
    alone = BatchNorm()
    variables = randomised(alone.init(KEY, x, None, True))

    def loss(layer, params, x, coefficients, extent):
        variables_ = {**variables, "params": params}
        y, updates = layer.apply(variables_, x, extent, True, mutable=["batch_stats"])
        return jnp.sum(jnp.where(jnp.isfinite(y), y, 0.0) * coefficients), updates

    def gradients(layer, *args):
        return jax.grad(partial(loss, layer), argnums=(0, 1), has_aux=True)(variables["params"], *args)

    def spread(*args):
        (grads, to_x), updates = gradients(BatchNorm(axis_name="data"), *args)
        return (jax.lax.psum(grads, "data"), to_x), updates

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    sharded = jax.shard_map(spread, mesh=mesh, in_specs=P("data"), out_specs=((P(), P("data")), P()), check_vma=False)
    expected = gradients(alone, x, coefficients, extent)
    actual = jax.jit(sharded)(x, coefficients, extent)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), actual, expected)


def test_no_norm_is_the_identity_and_an_unknown_one_is_refused():
    x = normal(1, 2, 2, 3)
    assert norm(None, name="norm")(x, None, True) is x
    with pytest.raises(ValueError, match="layer_norm"):
        norm("layer_norm", name="norm")


def test_bfloat16_normalises_in_float32():
    x = normal(1, 8, 8, 32)
    for kind in ("frozen_bn", "bn", "gn"):
        y, variables = norm(kind, name="norm", dtype="bfloat16").init_with_output(KEY, x, None, True)
        assert y.dtype == jnp.bfloat16
        counter = variables.get("batch_stats", {}).pop("num_batches", jnp.int32(0))
        assert counter.dtype == jnp.int32
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
