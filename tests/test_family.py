"""Every kind of member of the family: one `losses`, one `detect`, other parts."""

import chex
import jax
import numpy as np
import pytest
import tiny

from mrcnn_jax.models import architectures, plain, zoo
from mrcnn_jax.models.build import build
from mrcnn_jax.types import Proposals

KEY = jax.random.key(3)


def small(config, **roi):
    """Few classes, RoIs and candidates."""
    config.num_classes = tiny.NUM_CLASSES
    config.roi.update({"num_samples": 16, **roi})
    config.preprocess.std = (58.395, 57.12, 57.375)
    if config.rpn is not None:
        config.rpn.update({"num_samples": 32, "pre_nms": (32, 32), "post_nms": (24, 24), "min_size": 0.0})
    if config.box is not None:
        config.box.update({"fc_dims": (16, 16), "num_candidates": 40, "max_detections": 10, "score_threshold": 0.0})
    return config


def faster(network="small"):
    config = small(plain.faster_rcnn(network))
    config.rpn.update({"channels": 16, "sizes": ((16.0, 32.0, 48.0),)})
    return config


def rcnn():
    config = small(plain.rcnn("small"))
    config.box.size, config.roi.context = 32, 4
    return config


def ablated():
    config = tiny.model_config()
    config.roi.update({"pooling": "warp", "largest": True})
    config.mask.update({"softmax": True, "fc_dims": (8, 8)})
    return config


def without_boxes():
    config = tiny.model_config()
    config.box = config.mask = None
    return config


MEMBERS = {
    "rcnn": rcnn,
    "rcnn_svm": lambda: plain.svms(rcnn()),
    "fast": lambda: small(plain.fast_rcnn("small")),
    "faster": faster,
    "rpn": without_boxes,
    # Mask R-CNN with all that its ablations change, at once.
    "ablated": ablated,
}
# R-CNN trains the same with SVMs or without.
TRAINED = [name for name in MEMBERS if name != "rcnn_svm"]


def batch_for(config, seed=0):
    batch = tiny.batch(seed)
    if config.mask is None:
        batch = batch.replace(gt=batch.gt.replace(masks=None, has_mask=None))
    if config.rpn is not None:
        return batch
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (2, 20, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 24, corner.shape)], axis=-1).astype(np.float32)
    boxes[:, :4] = batch.gt.boxes[:, :4] + 1
    valid = np.broadcast_to(np.arange(20) < 18, (2, 20)).copy()
    return batch.replace(proposals=Proposals(boxes, np.zeros((2, 20), np.float32), valid))


def run(config, variables, batch, method):
    model = build(config)
    return jax.device_get(
        jax.jit(lambda variables, batch: model.apply(variables, batch, method=method))(variables, batch)
    )


def poisoned(batch, value):
    """With every row that is not valid filled with `value`, of objects and of proposals."""

    def fill(x, valid):
        mask = np.reshape(valid, valid.shape + (1,) * (x.ndim - 2))
        with np.errstate(invalid="ignore"):
            return np.where(mask, x, np.array(value).astype(x.dtype))

    parts = {"gt": batch.gt}
    if batch.proposals is not None:
        parts["proposals"] = batch.proposals
    for name, part in parts.items():
        fields = {key: x for key, x in vars(part).items() if x is not None and key != "valid"}
        batch = batch.replace(**{name: part.replace(**{key: fill(x, part.valid) for key, x in fields.items()})})
    return batch


@pytest.fixture(scope="module", params=TRAINED)
def member(request):
    config = MEMBERS[request.param]()
    model = build(config)
    detect = jax.jit(lambda variables, batch: model.apply(variables, batch, method="detect"))
    return request.param, config, tiny.variables(model), tiny.loss_and_gradient(model, KEY), detect


def test_losses_are_finite_and_every_part_learns(member):
    name, config, variables, run, _ = member
    (total, losses), gradient = run(variables, batch_for(config))
    assert np.isfinite(total)
    expected = set() if config.rpn is None else {"rpn_objectness", "rpn_box"}
    if config.box is not None:
        expected |= {"box_class", "box_regression"} if config.box.regression_weight else {"box_class"}
    assert set(losses) == expected | ({"mask"} if config.mask is not None else set())
    still = {path[-2].key for path, g in jax.tree_util.tree_leaves_with_path(gradient) if not np.any(g)}
    assert still == ({"bbox_pred"} if name.startswith("rcnn") else set())


@pytest.mark.parametrize("value", [7.0, 1e6, np.nan])
def test_invalid_rows_leave_everything_bit_identical(member, value):
    _, config, variables, run, detect = member
    batch = batch_for(config)
    chex.assert_trees_all_equal(run(variables, poisoned(batch, value)), run(variables, batch))
    found = detect(variables, poisoned(batch, value).replace(gt=None))
    chex.assert_trees_all_equal(found, detect(variables, batch.replace(gt=None)))


def test_detections_are_inside_the_image_and_best_first(member):
    name, config, variables, _, detect = member
    found = jax.device_get(detect(variables, batch_for(config).replace(gt=None)))
    assert found.valid.any()
    boxes, scores = found.boxes[found.valid], found.scores[0][found.valid[0]]
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    assert (np.diff(scores) <= 0).all()
    if name == "rpn":
        assert set(found.classes[found.valid]) == {1}
    if config.mask is not None:
        assert ((found.masks >= 0) & (found.masks <= 1)).all()
        assert found.masks.shape[2:] == (28, 28)


def test_boxes_stay_where_they_were_proposed_without_regression():
    config = MEMBERS["rcnn"]()
    batch = batch_for(config)
    found = run(config, tiny.variables(build(config)), batch.replace(gt=None), "detect")
    proposed = np.clip(batch.proposals.boxes[0], 0, 64)
    for box in found.boxes[0][found.valid[0]]:
        assert np.abs(proposed - np.asarray(box)).max(axis=1).min() < 1e-5


def test_margins_are_the_logits():
    config = MEMBERS["rcnn_svm"]()
    config.box.score_threshold = -100.0
    batch, variables = batch_for(config).replace(gt=None), tiny.variables(build(config))
    margins = run(config, variables, batch, "detect")
    config.box.score = "softmax"
    assert margins.scores.max() > 1 or margins.scores.min() < 0
    softmax = run(config, variables, batch, "detect")
    assert np.all((softmax.scores >= 0) & (softmax.scores <= 1))


def test_regions_pass_the_network_in_chunks_of_any_number(monkeypatch):
    config = MEMBERS["rcnn"]()
    batch, variables = batch_for(config), tiny.variables(build(config))
    whole = run(config, variables, batch, "region_features")
    monkeypatch.setattr("mrcnn_jax.models.rcnn._CHUNK", 7)
    chunked = run(config, variables, batch, "region_features")
    assert [x.shape for x in whole] == [(2, 20, 16), (2, 20, 128)]
    assert np.abs(whole[0]).max() > 0
    chex.assert_trees_all_close(chunked, whole, rtol=1e-5, atol=1e-6)


def test_dropout_draws_from_the_image_alone():
    """The same image gives the same loss wherever in a batch it stands, another key another one."""
    config = MEMBERS["fast"]()
    model, batch = build(config), batch_for(config)
    variables = tiny.variables(model)
    losses = jax.jit(lambda variables, batch, key: model.apply(variables, batch, key, method="losses")[0]["box_class"])
    alone = [losses(variables, jax.tree.map(lambda x, i=i: x[i : i + 1], batch), KEY)[0] for i in range(2)]
    swapped = losses(variables, jax.tree.map(lambda x: x[::-1], batch), KEY)[0]
    np.testing.assert_allclose(swapped, sum(alone), rtol=1e-5)
    another = losses(variables, batch, jax.random.key(4))[0]
    assert abs(float(another - swapped)) > 1e-3


def test_crossing_anchors_are_left_out_of_training_alone():
    config = faster()
    config.rpn.num_samples = 100
    batch, variables = batch_for(config), tiny.variables(build(config))

    def count(config):
        def read(module, batch):
            out = module.rpn(module.features(batch, train=True), batch.image.shape[1:3])
            return jax.vmap(module.rpn.losses, (0, 0, 0, None))(out, batch.gt, batch.size, None)["rpn_objectness"][1]

        return run(config, variables, batch, read)

    # Of the nine anchors of 16 cells only some lie inside 64 x 64 pixels.
    inside = count(config)
    assert (inside > 10).all()
    config.rpn.train_outside = True
    assert (count(config) > inside).all()


def test_background_has_to_overlap_as_much_as_the_config_says():
    config = MEMBERS["fast"]()
    model, batch = build(config), batch_for(config)
    gt = jax.tree.map(lambda x: x[0], batch.gt)
    boxes = np.full((20, 4), [0, 0, 1, 1], np.float32)
    far = Proposals(boxes, np.zeros(20, np.float32), np.ones(20, bool))
    sample = jax.jit(lambda far, gt: model.apply({}, KEY, far, gt, method="sample"))
    few = sample(far, gt)
    assert not np.any(few.valid & ~few.positive)
    config.roi.background_iou = 0.0
    model = build(config)
    many = jax.jit(lambda far, gt: model.apply({}, KEY, far, gt, method="sample"))(far, gt)
    assert np.any(many.valid & ~many.positive)


@pytest.mark.parametrize("name", architectures.NAMED)
def test_every_named_architecture_builds(name):
    model = build(architectures.named(name))
    shapes = jax.eval_shape(lambda key: model.init(key, tiny.batch(), method="touch"), jax.random.key(0))
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(shapes["params"])) > 1e6


def test_frozen_stages_by_name():
    assert zoo.frozen_prefixes(plain.fast_rcnn("vgg16")) == ("backbone/conv1", "backbone/conv2")
    assert zoo.frozen_prefixes(plain.rcnn("vgg16")) == ()
    assert zoo.frozen_prefixes(zoo.mask_rcnn(50)) == ("backbone/stem", "backbone/res2")
