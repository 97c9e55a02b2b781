"""Loss pieces against the reference libraries, and the masks: masked equals filtered, poison leaves no trace."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops import losses

GOLDEN = np.load(Path(__file__).parent / "golden" / "ops_geometry_losses.npz")
POISON = [7.0, 1e6, np.nan, np.inf, -np.inf]


def on_device(*arrays):
    return tuple(map(jnp.asarray, arrays))


def both(function):
    """Value, and gradient in the first argument of the sum of the float outputs."""
    return jax.jit(lambda *args: (function(*args), jax.grad(lambda *a: function(*a)[0])(*args)))


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("beta", [1.0, 1 / 9, 0.5])
def test_smooth_l1_of_reference(beta):
    x = jnp.asarray(GOLDEN["smooth_l1.in"])
    np.testing.assert_allclose(losses.smooth_l1(x, beta), GOLDEN[f"smooth_l1.{beta:.6f}"], rtol=1e-6, atol=1e-7)
    gradient = jax.jit(jax.grad(lambda x: losses.smooth_l1(x, beta).sum()))(x)
    np.testing.assert_allclose(gradient, GOLDEN[f"smooth_l1.{beta:.6f}.grad"], rtol=1e-6, atol=1e-7)


def test_smooth_l1_without_beta_is_l1():
    x = jnp.asarray([-2.0, 0.0, 3.0])
    np.testing.assert_array_equal(losses.smooth_l1(x, 0.0), [2, 0, 3])
    np.testing.assert_array_equal(jax.grad(lambda x: losses.smooth_l1(x, 0.0).sum())(x), [-1, 0, 1])


def test_box_stage_of_reference():
    labels = jnp.asarray(GOLDEN["labels"])
    valid = jnp.ones(64, bool)

    def classification(logits):
        total, weight = losses.softmax_cross_entropy(logits, labels, valid)
        return total / weight

    def regression(deltas):
        own = jnp.take_along_axis(deltas.reshape(64, 5, 4), labels[:, None, None], axis=1)[:, 0]
        return losses.box_loss(own, jnp.asarray(GOLDEN["regression_targets"]), labels > 0, 1 / 9) / 64

    for i, (loss, key, gradient) in enumerate(
        [(classification, "class_logits", "tv.fastrcnn.gc"), (regression, "box_regression", "tv.fastrcnn.gb")]
    ):
        value, slope = jax.jit(jax.value_and_grad(loss))(jnp.asarray(GOLDEN[key]))
        np.testing.assert_allclose(value, GOLDEN["tv.fastrcnn"][i], rtol=1e-6)
        np.testing.assert_allclose(slope, GOLDEN[gradient], rtol=1e-5, atol=1e-7)


def test_mask_loss_of_reference():
    targets, logits = jnp.asarray(GOLDEN["mask.tv.project_masks_on_boxes"]), jnp.asarray(GOLDEN["mask.mask_logits"])
    classes = jnp.asarray(GOLDEN["mask.labels"])[GOLDEN["mask.matched"]]

    def loss(logits):
        own = jnp.take_along_axis(logits, classes[:, None, None, None], axis=1)[:, 0]
        total, weight = losses.mask_loss(own, targets, jnp.ones(6, bool))
        return total / weight

    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    np.testing.assert_allclose(value, GOLDEN["mask.tv.maskrcnn_loss"], rtol=1e-6)
    np.testing.assert_allclose(gradient, GOLDEN["mask.tv.maskrcnn_loss.grad"], rtol=1e-5, atol=1e-9)


def test_sigmoid_cross_entropy_is_stable():
    logits = jnp.asarray([-500.0, -20.0, 0.0, 20.0, 500.0])
    np.testing.assert_allclose(
        losses.sigmoid_cross_entropy(logits, jnp.ones(5)), [500, 20, np.log(2), 2.0611536e-9, 0], rtol=1e-6, atol=1e-30
    )
    slope = jax.grad(lambda x: losses.sigmoid_cross_entropy(x, jnp.full(5, 0.25)).sum())(logits)
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(-np.asarray(logits, np.float64))) - 0.25, rtol=1e-5)


def cases():
    """Each loss as a function of one float array, a mask, and the rest, with inputs of 12 rows."""
    rng = np.random.default_rng(0)
    mask = rng.random(12) < 0.6

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    classes, positive = rng.integers(0, 4, 12).astype(np.int32), rng.random(12) < 0.5
    return {
        "softmax": (losses.softmax_cross_entropy, normal(12, 4), mask, lambda x, m, c: (x, c, m), classes),
        "objectness": (losses.objectness_loss, normal(12), mask, lambda x, m, p: (x, p, m), positive),
        "mask": (
            losses.mask_loss,
            normal(12, 5, 5),
            mask,
            lambda x, m, t: (x, t, m),
            rng.random((12, 5, 5), np.float32),
        ),
        "box": (
            lambda x, t, m: (losses.box_loss(x, t, m, 0.0), m.sum().astype(jnp.float32)),
            normal(12, 4),
            mask,
            lambda x, m, t: (x, t, m),
            normal(12, 4),
        ),
    }


@pytest.mark.parametrize("name", cases())
def test_masked_equals_filtered(name):
    loss, x, mask, order, rest = cases()[name]
    (total, weight), gradient = both(loss)(*order(x, mask, rest))
    (expected, count), slope = both(loss)(*order(x[mask], mask[mask], rest[mask]))
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert int(weight) == int(count) == mask.sum()
    np.testing.assert_allclose(gradient[mask], slope, rtol=1e-6)
    assert (np.asarray(gradient)[~mask] == 0).all()


@pytest.mark.parametrize("name", cases())
def test_masked_rows_may_hold_anything(name):
    loss, x, mask, order, rest = cases()[name]
    function = both(loss)
    expected = function(*order(x, mask, rest))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    for value in POISON:
        bad, bad_rest = x.copy(), rest.copy()
        bad[~mask] = value
        if rest.dtype == np.float32:
            bad_rest[~mask] = value
        elif rest.dtype == np.int32:
            bad_rest[~mask] = 1_000_000
        assert_same_bits(function(*order(bad, mask, bad_rest)), expected)


@pytest.mark.parametrize("name", cases())
def test_vmap_equals_loop_and_nothing_chosen_gives_zero(name):
    loss, x, mask, order, rest = cases()[name]
    stack = [np.stack([a, a[::-1]]) for a in order(x, mask, rest)]
    total, weight = jax.jit(jax.vmap(loss))(*stack)
    for i in range(2):
        one = jax.jit(loss)(*on_device(*(a[i] for a in stack)))
        np.testing.assert_allclose((total[i], weight[i]), one, rtol=1e-6)
    empty, gradient = both(loss)(*order(np.full_like(x, np.nan), np.zeros_like(mask), rest))
    assert_same_bits(empty, (np.float32(0), np.float32(0)))
    assert (np.asarray(gradient) == 0).all()


def test_classes_compete_for_the_pixels_of_a_mask():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((5, 3, 3, 4)).astype(np.float32)
    targets = rng.integers(0, 2, (5, 3, 3)).astype(np.float32)
    classes, where = np.array([1, 3, 2, 0, 1]), np.array([True, True, True, False, False])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = 0.0
    for i in range(3):
        for y, x in np.ndindex(3, 3):
            expected -= np.log(p[i, y, x, classes[i] if targets[i, y, x] else 0]) / 9
    loss = jax.jit(jax.value_and_grad(losses.mask_softmax_loss, has_aux=True))
    (total, weight), gradient = loss(jnp.asarray(logits), targets, classes, where)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert weight == 3
    assert not np.any(gradient[3:])
    for poison in (7.0, 1e6, np.nan):
        bad = np.where(where[:, None, None, None], logits, np.float32(poison))
        jax.tree.map(
            np.testing.assert_array_equal,
            loss(jnp.asarray(bad), np.where(where[:, None, None], targets, np.float32(poison)), classes, where),
            ((total, weight), gradient),
        )
