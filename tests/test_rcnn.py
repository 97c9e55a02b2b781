"""The whole detector: padding changes nothing, devices change nothing, memory does not follow the objects."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mrcnn_jax import distributed
from mrcnn_jax.errors import UserError
from mrcnn_jax.models import zoo
from mrcnn_jax.models.build import build
from mrcnn_jax.train_step import init_state, make_train_step, state_shardings

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def model():
    return build(tiny.model_config())


@pytest.fixture(scope="module")
def variables(model):
    return tiny.variables(model)


@pytest.fixture(scope="module")
def run(model):
    return tiny.loss_and_gradient(model, KEY)


@pytest.fixture(scope="module")
def detect(model):
    return jax.jit(lambda variables, batch: model.apply(variables, batch, method="detect"))


def pad_rows(gt, value):
    """The same ground truth with every row that is not valid filled with `value`."""

    def fill(x):
        mask = np.reshape(gt.valid, gt.valid.shape + (1,) * (x.ndim - 2))
        with np.errstate(invalid="ignore"):
            return np.where(mask, x, np.array(value).astype(x.dtype))

    filled = {name: fill(getattr(gt, name)) for name in ("boxes", "classes", "crowd", "masks", "has_mask")}
    return gt.replace(**filled)


@pytest.mark.parametrize("value", [7.0, 1e6, np.nan])
def test_invalid_rows_leave_losses_and_gradients_bit_identical(run, variables, value):
    batch = tiny.batch()
    expected = run(variables, batch)
    poisoned = run(variables, batch.replace(gt=pad_rows(batch.gt, value)))
    chex.assert_trees_all_equal(poisoned, expected)


def test_losses_are_finite_and_learnable(run, variables):
    (total, losses), grads = run(variables, tiny.batch())
    assert np.isfinite(total)
    assert set(losses) == {"rpn_objectness", "rpn_box", "box_class", "box_regression", "mask"}
    assert all(weight > 0 for _, weight in losses.values())
    without_gradient = [path for path, g in jax.tree_util.tree_leaves_with_path(grads) if not np.any(g)]
    assert without_gradient == []


def test_a_mask_branch_without_masks_is_told(run, variables):
    batch = tiny.batch()
    with pytest.raises(UserError, match=r"set config\.data\.mask_size"):
        run(variables, batch.replace(gt=batch.gt.replace(masks=None, has_mask=None)))


def test_an_image_without_objects_trains_on_background(run, variables):
    (_, losses), grads = run(variables, tiny.batch(num_objects=0))
    assert losses["mask"] == (0, 0)
    assert losses["rpn_box"][0] == losses["box_regression"][0] == 0
    assert losses["box_class"][0] > 0
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_padding_images_do_not_count(run, variables):
    batch = tiny.batch(num_images=4)
    # Of noise, some pixel of a mask's target is always within a rounding of its threshold.
    batch = batch.replace(gt=batch.gt.replace(masks=np.full_like(batch.gt.masks, 255)))
    alone = run(variables, jax.tree.map(lambda x: x[:2], batch))
    padded = run(variables, batch.replace(valid=np.array([True, True, False, False])))
    chex.assert_trees_all_close(padded, alone, rtol=1e-4, atol=2e-5)


def small_deltas(variables):
    """As trained models have them: the large ones of random weights multiply rounding errors."""

    def scale(path, x):
        return x * np.float32(0.1) if path[-2].key in ("anchor_deltas", "bbox_pred") else x

    return jax.tree_util.tree_map_with_path(scale, variables)


def test_choices_for_a_tpu_give_the_numbers_of_a_cpu(model, run, detect, variables, monkeypatch):
    """With every branch that a TPU takes: losses, their gradient by the pyramid behind RoIAlign, and detections."""
    batch, taken = tiny.batch(), set()
    ((_, losses), gradient), detections = run(variables, batch), detect(variables, batch)

    def as_on_tpu(*arguments, cpu=None, tpu=None, default=None):
        choice = tpu or default
        taken.add(choice.func.__name__ if isinstance(choice, partial) else choice.__name__)
        return choice(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", as_on_tpu)

    def total(pyramid, variables, batch):
        variables = {**variables, "params": {**variables["params"], "fpn": pyramid}}
        losses, _ = model.apply(variables, batch, KEY, method="losses")
        return sum(total / jnp.maximum(weight, 1.0) for total, weight in losses.values()), losses

    @jax.jit
    def everything(variables, batch):
        by_pyramid, losses = jax.grad(total, has_aux=True)(variables["params"]["fpn"], variables, batch)
        return by_pyramid, losses, model.apply(variables, batch, method="detect")

    by_pyramid, tpu_losses, tpu_detections = everything(variables, batch)
    assert {"_matmul", "_matmul_transpose", "_all_rows_at_once"} <= taken
    chex.assert_trees_all_close(tpu_losses, losses, rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(by_pyramid), jax.tree.leaves(gradient["fpn"]), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs) + 1e-6
    assert detections.valid.any()
    chex.assert_trees_all_close(tpu_detections, detections, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bucket", [(64, 64), (96, 128), (128, 96)])
def test_detections_do_not_depend_on_batch_or_bucket(detect, variables, bucket):
    """An image among four others, in any bucket, as alone on its own canvas: to 1e-3 pixels and 1e-5 in score."""
    variables = small_deltas(variables)
    batch = tiny.batch(num_images=5, side=64).replace(gt=None)
    sizes = np.array([[64, 64], [50, 61], [33, 20], [64, 40], [32, 64]], np.int32)
    image = np.zeros((5, *bucket, 3), np.uint8)
    image[:, :64, :64] = batch.image
    together = jax.device_get(detect(variables, batch.replace(image=image, size=sizes)))
    for row, size in enumerate(sizes[:3]):
        height, width = -(-size // 32) * 32
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
        alone = detect(variables, one.replace(image=one.image[:, :height, :width], size=size[None]))
        found = jax.tree.map(lambda x, row=row: x[row : row + 1], together)
        assert alone.valid.sum() > 0
        chex.assert_trees_all_equal((found.valid, found.classes), (alone.valid, alone.classes))
        chex.assert_trees_all_close(found.scores, alone.scores, atol=1e-5)
        chex.assert_trees_all_close(found.boxes, alone.boxes, atol=1e-3)
        chex.assert_trees_all_close(found.masks, alone.masks, atol=1e-4)


def train_step_on(num_devices, model_config, batch, shard_optimizer=False):
    """The metrics and the gradient of a step; a second step shows that nothing is traced anew."""
    model = build(model_config, distributed.AXIS)
    # As NumPy: the step takes the place of the state that it is given.
    variables = jax.device_get(tiny.variables(model))
    tx = optax.sgd(1.0, momentum=0.9)
    mesh = distributed.make_mesh(num_devices)
    chex.clear_trace_counter()
    step = make_train_step(model, tx, seed=0, mesh=mesh, shard_optimizer=shard_optimizer)
    state = init_state(variables, tx, ema=False)
    shardings = state_shardings(state, mesh, shard_optimizer=shard_optimizer)
    step = distributed.compile_step(chex.assert_max_traces(step, n=1), mesh, shardings)
    state = distributed.place(state, shardings)
    on_a_device = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.opt_state))
    everything = sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    assert on_a_device < 0.3 * everything if shard_optimizer else on_a_device == everything
    after, metrics = step(state, distributed.shard(batch, mesh))
    assert jax.tree.map(lambda x: x.sharding, after) == shardings
    gradient = jax.tree.map(lambda old, new: old - np.asarray(new, np.float64), variables["params"], after.params)
    step(after, distributed.shard(batch, mesh))
    return gradient, jax.device_get(metrics)


def test_one_and_four_devices_agree():
    """With a norm whose statistics are those of all devices together."""
    config = tiny.model_config()
    config.backbone.norm = "bn"
    batch = tiny.batch(num_images=4)
    gradient, metrics = train_step_on(1, config, batch)
    other_gradient, other_metrics = train_step_on(4, config, batch)
    for name in metrics:
        tolerance = 3e-5 if name == "gradient_norm" else 1e-5
        np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=tolerance)
    difference = jax.tree.map(np.subtract, other_gradient, gradient)
    assert optax.tree.norm(difference) < 1e-5 * optax.tree.norm(gradient)


def test_a_sharded_optimiser_does_the_same(monkeypatch):
    """The same update as where every device has all of it, of which each now keeps a quarter."""
    monkeypatch.setattr(distributed, "_MIN_PARTS", 64)
    config, batch = tiny.model_config(), tiny.batch(num_images=4)
    config.backbone.norm = "bn"
    gradient, metrics = train_step_on(4, config, batch)
    other_gradient, other_metrics = train_step_on(4, config, batch, shard_optimizer=True)
    for name in metrics:
        np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-5)
    difference = jax.tree.map(np.subtract, other_gradient, gradient)
    assert optax.tree.norm(difference) < 1e-5 * optax.tree.norm(gradient)


def test_memory_does_not_follow_the_number_of_objects(model, variables):
    def temporary_bytes(num_slots):
        # As leaves: `lower` fills containers with shapes, which their annotations do not take.
        leaves, tree = jax.tree.flatten(tiny.batch(num_slots=num_slots, num_objects=4))

        def losses(params, *leaves):
            losses, _ = model.apply({"params": params}, jax.tree.unflatten(tree, leaves), KEY, method="losses")
            return sum(total / jnp.maximum(weight, 1.0) for total, weight in losses.values())

        lowered = jax.jit(jax.grad(losses)).lower(variables["params"], *leaves)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(8), temporary_bytes(300)
    # 300 objects bring 2 x 300 x 112 x 14 bytes of masks along; unpacked they would be 15 MB an image.
    assert many - few < 3 * 2 * 300 * 112 * 14


def test_three_hundred_objects_train_without_a_new_trace(model, variables):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def losses(variables, batch):
        return model.apply(variables, batch, KEY, method="losses")

    for num_objects in (0, 5, 300):
        found, _ = losses(variables, tiny.batch(num_slots=300, num_objects=num_objects))
        assert all(np.isfinite(total) for total, _ in found.values())


def test_a_row_without_an_image_is_in_no_statistics():
    config = tiny.model_config()
    config.backbone.norm = "bn"
    model, batch = build(config), tiny.batch()
    variables = tiny.variables(model)

    @jax.jit
    def statistics(variables, batch):
        def features(module, batch):
            return module.features(batch, train=True)[2][0][0]

        return model.apply(variables, batch, method=features, mutable=["batch_stats"])

    batch = batch.replace(valid=np.array([True, False]))
    expected = statistics(variables, batch)
    noise = batch.replace(image=np.concatenate([batch.image[:1], 255 - batch.image[1:]]), size=batch.size // [[1], [2]])
    chex.assert_trees_all_equal(statistics(variables, noise), expected)


def test_torchvisions_strides_are_those_of_the_canvas():
    """torchvision divides the padded image by the map; here that of the image alone, whatever it is padded into."""
    config = zoo.torchvision(tiny.model_config())
    model = build(config)

    @jax.jit
    def anchors(variables, batch):
        def read(module, batch):
            out = module.rpn(module.features(batch, train=False), batch.image.shape[1:3])
            return out.anchors, out.valid

        return model.apply(variables, batch, method=read)

    batch = tiny.batch(side=96)
    variables = tiny.variables(model)
    expected, _ = anchors(variables, batch)
    wide = batch.replace(image=np.pad(batch.image, ((0, 0), (0, 0), (0, 32), (0, 0))))
    found, valid = anchors(variables, wide)
    # Level 6 is one and a half cells of 64 pixels, rounded up to two: 48 pixels apart, not 64.
    np.testing.assert_array_equal(expected[0, -9:-6] - expected[0, -12:-9], [[48.0, 0.0, 48.0, 0.0]] * 3)
    np.testing.assert_array_equal(found[valid].reshape(expected.shape), expected)
