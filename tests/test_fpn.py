from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.nn.fpn import FPN, upsample

GOLDEN = np.load(Path(__file__).parent / "golden" / "nn_layers.npz")
KEY = jax.random.key(0)


def maps_of(height, width, channels=(8, 12, 16, 20), batch=1):
    """Random maps of a backbone at levels 2 to 5, without extents; each half the size of the one before, rounded up."""
    rng, maps = np.random.default_rng(0), {}
    for level, c in enumerate(channels, start=2):
        maps[level] = (jnp.asarray(rng.normal(size=(batch, height, width, c)), jnp.float32), None)
        height, width = (height + 1) // 2, (width + 1) // 2
    return maps


@pytest.mark.parametrize(("norm", "expected"), [(None, 3_344_384), ("gn", 3_346_432), ("bn", 3_346_432)])
def test_size_is_that_of_the_reference(norm, expected):
    maps = maps_of(8, 8, (256, 512, 1024, 2048))
    params = jax.eval_shape(lambda: FPN(norm=norm).init(KEY, maps, True))["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == expected
    names = {"lateral2", "output5"} | ({"lateral2_norm", "output5_norm"} if norm else set())
    assert names <= set(params)


def test_upsample_is_nearest_neighbour_to_the_exact_size():
    x = jnp.asarray(GOLDEN["in"].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(upsample(x, 9, 14), GOLDEN["nearest_9x14"].transpose(0, 2, 3, 1))


def test_upsample_refuses_a_size_that_is_not_twice():
    with pytest.raises(ValueError, match="11 x 14"):
        upsample(jnp.zeros((1, 5, 7, 2)), 11, 14)


def test_the_extra_level_is_max_pooling_of_one_cell_at_stride_two():
    maps = {2: (jnp.asarray(GOLDEN["in"].transpose(0, 2, 3, 1)), None)}
    variables = {
        "params": {name: {"kernel": jnp.asarray(k), "bias": jnp.zeros(2)} for name, k in identity_kernels().items()}
    }
    pyramid = FPN(2).apply(variables, maps, True)
    np.testing.assert_array_equal(pyramid[3][0], GOLDEN["maxpool_1_2"].transpose(0, 2, 3, 1))


def identity_kernels():
    output = np.zeros((3, 3, 2, 2), np.float32)
    output[1, 1] = np.eye(2)
    return {"lateral2": np.eye(2, dtype=np.float32)[None, None], "output2": output}


def test_levels_are_summed_from_the_top():
    maps = maps_of(8, 12)
    pyramid, variables = FPN(4).init_with_output(KEY, maps, True)
    p = variables["params"]
    merged = maps[5][0] @ p["lateral5"]["kernel"][0, 0]
    for level in (4, 3, 2):
        x = maps[level][0]
        above = np.repeat(np.repeat(merged, 2, 1), 2, 2)[:, : x.shape[1], : x.shape[2]]
        merged = x @ p[f"lateral{level}"]["kernel"][0, 0] + above
    padded = np.pad(merged, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(padded[:, i : i + 8, j : j + 12] @ p["output2"]["kernel"][i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(pyramid[2][0], expected, rtol=1e-4, atol=1e-5)
    assert list(pyramid) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("norm", [None, "gn", "bn"])
def test_an_image_alone_has_the_pyramid_it_has_in_a_larger_array(norm):
    alone = maps_of(13, 10)
    larger, extents = maps_of(24, 16), {}
    for level, (x, _) in alone.items():
        h, w = x.shape[1:3]
        # A backbone's maps are zero beyond their extent, but the pyramid does not rely on it.
        padded = jnp.full_like(larger[level][0], 1e6).at[:, :h, :w].set(x)
        extents[level] = (padded, jnp.array([[h, w]]))
    model = FPN(32, norm=norm)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.1, 0.5, x.shape), jnp.float32),
        jax.eval_shape(lambda: model.init(KEY, alone, True)),
    )
    run = jax.jit(lambda maps: model.apply(variables, maps, True, mutable=["batch_stats"])[0])
    expected, actual = run(alone), run(extents)
    for level, (x, extent) in actual.items():
        h, w = expected[level][0].shape[1:3]
        np.testing.assert_array_equal(extent, [[h, w]])
        np.testing.assert_allclose(x[:, :h, :w], expected[level][0], rtol=1e-5, atol=2e-5)
        assert not np.any(x[:, h:])
        assert not np.any(x[:, :, w:])
