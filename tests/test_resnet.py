from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.nn.conv import Conv
from mrcnn_jax.nn.norm import norm
from mrcnn_jax.nn.resnet import Bottleneck, NonLocal, ResNet

KEY = jax.random.key(0)


def sizes(model, shape=(1, 64, 64, 3)):
    """Numbers of parameters and of buffer elements."""
    variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros(shape), None, True))
    return tuple(sum(x.size for x in jax.tree.leaves(variables.get(k, {}))) for k in ("params", "batch_stats"))


# The sums over Detectron2's state dicts, without buffers.
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (ResNet(50), (23_454_912, 106_240)),
        (ResNet(101), (42_394_816, 210_688)),
        (ResNet(101, groups=32, base_width=8), (86_539_456, 405_760)),
        (ResNet(50, norm="gn"), (23_508_032, 0)),
        # A counter for each of its 53 norms.
        (ResNet(50, norm="bn"), (23_508_032, 53_120 + 53)),
    ],
)
def test_sizes_are_those_of_the_reference(model, expected):
    assert sizes(model) == expected


def test_names():
    variables = jax.eval_shape(lambda: ResNet(50).init(KEY, jnp.zeros((1, 64, 64, 3)), None, True))
    params, buffers = variables["params"], variables["batch_stats"]
    assert set(params) == {"stem"} | {
        f"res{s}_{i}" for s, n in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True) for i in range(n)
    }
    assert set(params["res3_0"]) == {"conv1", "conv2", "conv3", "shortcut"}
    assert set(buffers["res3_0"]) == {"norm1", "norm2", "norm3", "shortcut_norm"}
    assert set(params["res3_1"]) == {"conv1", "conv2", "conv3"}
    assert set(params["stem"]) == {"conv1"}
    assert set(buffers["stem"]) == {"norm"}


@pytest.mark.parametrize("depth", [10, 18, 34, 50])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_shapes_and_extents(depth, stride_in_1x1):
    model = ResNet(depth, stride_in_1x1=stride_in_1x1, deep_stem=depth == 34)
    extent = jnp.array([[70, 33], [96, 64]])
    maps = jax.eval_shape(lambda: model.init_with_output(KEY, jnp.zeros((2, 96, 64, 3)), extent, True)[0])
    widest = 512 if depth < 50 else 2048
    assert {level: m.shape for level, (m, _) in maps.items()} == {
        2: (2, 24, 16, widest // 8), 3: (2, 12, 8, widest // 4), 4: (2, 6, 4, widest // 2), 5: (2, 3, 2, widest),
    }  # fmt: skip


def variables_of(model, *args):
    """Plausible random variables without the compilation of an initialiser."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return jnp.asarray(rng.normal(size=leaf.shape) * np.sqrt(2 / fan_in), jnp.float32)
        return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), jnp.float32)

    shapes = jax.eval_shape(lambda: model.init(KEY, *args, None, True))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def alone_and_padded(model, shape, padded_shape):
    """What a model makes of a map alone, and at the corner of a larger array that is NaN elsewhere."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    padded = jnp.full(padded_shape, jnp.nan).at[:, : shape[1], : shape[2]].set(x)
    variables = variables_of(model, x)
    run = jax.jit(lambda x, extent: model.apply(variables, x, extent, True, mutable=["batch_stats"])[0])
    expected, actual = run(x, None), run(padded, jnp.array([shape[1:3]]))
    return expected, actual


def check_map(expected, actual, extent):
    h, w = expected.shape[1:3]
    np.testing.assert_array_equal(extent, [[h, w]])
    np.testing.assert_allclose(actual[:, :h, :w], expected, atol=1e-5 * max(float(jnp.abs(expected).max()), 1.0))
    assert not np.any(actual[:, h:])
    assert not np.any(actual[:, :, w:])


@pytest.mark.parametrize(
    ("kind", "deep_stem", "frozen"), [("gn", False, 0), ("bn", True, 0), ("frozen_bn", False, 2), (None, False, 1)]
)
def test_an_image_alone_has_the_features_it_has_in_a_larger_array(kind, deep_stem, frozen):
    model = ResNet(10, width=16, norm=kind, deep_stem=deep_stem, frozen_stages=frozen)
    # An odd size: every level rounds up.
    expected, actual = alone_and_padded(model, (1, 53, 37, 3), (1, 80, 64, 3))
    for level in range(2, 6):
        check_map(expected[level][0], *actual[level])


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_a_bottleneck_is_blind_to_padding(stride_in_1x1):
    model = Bottleneck(
        planes=4, inner=8, stride=2, dilation=1, groups=2, stride_in_1x1=stride_in_1x1,
        last_scale_init=nn.initializers.ones_init(), conv=Conv, norm=partial(norm, "gn"),
    )  # fmt: skip
    expected, actual = alone_and_padded(model, (1, 7, 6, 8), (1, 10, 9, 8))
    check_map(expected[0], *actual)


def gradient_and_statistics(model):
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 32, 3)), jnp.float32)
    variables = variables_of(model, image)

    def loss(params):
        maps, updates = model.apply({**variables, "params": params}, image, None, True, mutable=["batch_stats"])
        return sum(jnp.mean(jnp.sin(m)) for m, _ in maps.values()), updates["batch_stats"]

    grads, after = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return grads, variables["batch_stats"], after


def test_frozen_stages_have_no_gradient_and_no_new_statistics():
    grads, before, after = gradient_and_statistics(ResNet(10, width=8, norm="bn", frozen_stages=2))
    for name in ("stem", "res2_0", "res3_0", "res4_0", "res5_0"):
        moved = any(np.any(x) for x in jax.tree.leaves(grads[name]))
        learned = any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before[name], after[name])), strict=True))
        assert moved == learned == (name not in ("stem", "res2_0"))


def test_remat_changes_nothing():
    kept, again = (
        gradient_and_statistics(ResNet(10, width=8, norm="bn", frozen_stages=0, remat=r)) for r in (False, True)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), kept, again)
    assert all(np.any(x) for x in jax.tree.leaves(kept[0]["stem"]))


def test_zero_init_residual_starts_blocks_as_the_identity():
    model = ResNet(10, width=8, norm="gn", zero_init_residual=True)

    def scales():
        params = model.init(KEY, jnp.zeros((1, 32, 32, 3)), None, True)["params"]["res2_0"]
        return params["norm1"]["scale"], params["norm2"]["scale"]

    first, last = jax.jit(scales)()
    assert np.all(first == 1)
    assert not np.any(last)


def test_an_unknown_depth_is_refused():
    with pytest.raises(ValueError, match="depth 20"):
        sizes(ResNet(20))


def test_non_local_starts_as_the_identity_and_looks_at_the_image_alone():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 6, 8, 16)), jnp.float32)
    extent = jnp.asarray([[4, 5], [6, 8]])
    block = NonLocal()
    params = block.init(jax.random.key(0), x, extent)
    np.testing.assert_array_equal(block.apply(params, x, extent), x)
    params["params"]["out"]["kernel"] = jnp.asarray(rng.standard_normal((1, 1, 8, 16)), jnp.float32)
    apply = jax.jit(block.apply)
    alone = apply(params, x[:1, :4, :5], None)
    noise = x.at[0, 4:].set(9.0).at[0, :, 5:].set(9.0)
    within = jnp.where((jnp.arange(6)[:, None] < 4) & (jnp.arange(8)[None] < 5), 1.0, 0.0)[None, ..., None]
    clean = jnp.concatenate([noise[:1] * within, noise[1:]])
    together = apply(params, clean, extent)
    assert np.abs(alone - x[:1, :4, :5]).max() > 0.1
    np.testing.assert_allclose(together[:1, :4, :5], alone, rtol=1e-4, atol=1e-5)
    # A row without an image has no cell to look at.
    assert np.isfinite(apply(params, clean, jnp.asarray([[0, 0], [6, 8]]))).all()


def test_a_resnet_with_a_non_local_block_has_its_parameters():
    x = jnp.zeros((1, 64, 64, 3))
    count = {}
    for non_local in (False, True):
        init = partial(ResNet(depth=50, non_local=non_local).init, extent=None, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), x)
        count[non_local] = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    assert count[True] - count[False] == 3 * (1024 * 512 + 512) + 512 * 1024 + 1024
