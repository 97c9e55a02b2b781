import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from mrcnn_jax.errors import UserError
from mrcnn_jax.optim import optimizer, schedule


def config_of(**changes):
    c = {
        "name": "sgd", "learning_rate": 0.02, "base_batch_size": 16, "momentum": 0.9, "weight_decay": 1e-4,
        "schedule": "step", "milestones": (60, 80), "warmup_steps": 0,
        "warmup_factor": 1e-3, "clip_norm": 0.0, "freeze": (),
    } | changes  # fmt: skip
    return ConfigDict({"optimizer": c, "train": {"batch_size": 16, "steps": 90}})


def params():
    rng = np.random.default_rng(0)

    def layer():
        return {"kernel": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32), "bias": jnp.ones(3)}

    trunk = {"stem": {"conv1": layer()}, "res2_0": {"conv1": layer()}, "res3_0": {"conv1": layer()}}
    trunk["res2_0"]["norm1"] = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
    return {"backbone": trunk, "box": {"fc1": layer(), "fc10": layer()}}


def gradients(seed):
    leaves, tree = jax.tree.flatten(params())
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in leaves])


def run(config, steps=3):
    p = params()
    rule, _ = optimizer(config, p)
    state = rule.init(p)
    for step in range(steps):
        updates, state = rule.update(gradients(step), state, p)
        p = optax.apply_updates(p, updates)
    return p, state


def test_sgd_is_that_of_torch():
    p, _ = run(config_of(weight_decay=0.1))
    leaves = jax.tree_util.tree_leaves_with_path(params())
    all_gradients = [jax.tree.leaves(gradients(step)) for step in range(3)]
    for i, ((path, w), actual) in enumerate(zip(leaves, jax.tree.leaves(p), strict=True)):
        w, momentum = np.asarray(w, np.float64), 0.0
        decay = 0.1 if path[-1].key == "kernel" else 0.0
        for step in range(3):
            momentum = 0.9 * momentum + all_gradients[step][i] + decay * w
            w = w - 0.02 * momentum
        np.testing.assert_allclose(actual, w, rtol=1e-5, atol=1e-6)


def test_adamw_decays_apart_from_the_gradient():
    p, _ = run(config_of(name="adamw", learning_rate=1e-2, weight_decay=0.1), steps=1)
    kernel, bias = (params()["box"]["fc1"][k] for k in ("kernel", "bias"))
    g = gradients(0)["box"]["fc1"]
    # The first step of Adam is the sign of the gradient.
    expected = kernel - 1e-2 * (np.sign(g["kernel"]) + 0.1 * kernel)
    np.testing.assert_allclose(p["box"]["fc1"]["kernel"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(p["box"]["fc1"]["bias"], bias - 1e-2 * np.sign(g["bias"]), rtol=1e-4, atol=1e-6)


def test_frozen_parameters_stay_and_hold_no_state():
    p, state = run(config_of(freeze=("backbone/stem", "backbone/res2", "box/fc1")))
    before = params()
    for where in (("backbone", "stem"), ("backbone", "res2_0"), ("box", "fc1")):
        old, new = before[where[0]][where[1]], p[where[0]][where[1]]
        jax.tree.map(np.testing.assert_array_equal, old, new)
    assert np.any(p["backbone"]["res3_0"]["conv1"]["kernel"] != before["backbone"]["res3_0"]["conv1"]["kernel"])
    # A prefix ends where a name does.
    assert np.any(p["box"]["fc10"]["kernel"] != before["box"]["fc10"]["kernel"])
    assert sum(x.size for x in jax.tree.leaves(state) if jnp.ndim(x) > 0) == 2 * (6 + 3)


def test_the_gradient_of_what_is_trained_is_clipped():
    config = config_of(clip_norm=0.5, weight_decay=0.0, learning_rate=1.0, freeze=("backbone",))
    p, _ = run(config, steps=1)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, p, params()))
    np.testing.assert_allclose(moved, 0.5, rtol=1e-5)


def test_a_prefix_of_nothing_names_the_nearest():
    with pytest.raises(UserError, match=r"'backbone/stm'.*backbone/stem"):
        optimizer(config_of(freeze=("backbone/stm",)), params())


@pytest.mark.parametrize(
    ("changes", "key"), [({"name": "lion"}, "optimizer.name"), ({"schedule": "exp"}, "optimizer.sch")]
)
def test_unknown_names_are_refused(changes, key):
    with pytest.raises(UserError, match=key):
        optimizer(config_of(**changes), params())


def test_step_schedule_warms_up_and_falls():
    rate = schedule(config_of(warmup_steps=10))
    assert np.allclose(rate(0), 0.02 * 1e-3)
    assert np.allclose(rate(5), 0.02 * (0.5 * 1e-3 + 0.5))
    assert np.allclose([rate(s) for s in (10, 59, 60, 79, 80, 89)], [0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002])


def test_cosine_schedule_ends_at_zero():
    rate = schedule(config_of(schedule="cosine"))
    assert np.allclose([rate(s) for s in (0, 45, 90)], [0.02, 0.01, 0.0], atol=1e-8)


def test_rate_is_scaled_with_the_batch():
    config = config_of()
    config.train.batch_size = 4
    assert np.allclose(schedule(config)(30), 0.005)
    assert np.allclose(jax.jit(schedule(config))(jnp.int32(30)), 0.005)
