"""Box regressors against the closed form, the reference's whitening included."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from mrcnn_jax.errors import UserError
from mrcnn_jax.fitting import ridge as module
from mrcnn_jax.fitting.regions import Regions, feature_scale, label_regions
from mrcnn_jax.fitting.ridge import fit_box_regressors
from mrcnn_jax.ops import boxes as box_ops

NAMES = ["cat", "dog", "cow"]
# An image's mean and covariance of deltas are far from 0 and from those of independent numbers.
MIX = np.array([[0.3, 0.1, 0, 0.05], [0, 0.2, 0.1, 0], [0, 0, 0.4, 0.3], [0, 0, 0, 0.1]])
MEAN = np.array([0.05, -0.1, 0.2, 0.1])


def random_image(rng, n=60, num_features=12):
    """Regions near objects of the first two classes, half of them of IoU over 0.6; features tell of their deltas."""
    classes = rng.integers(1, 3, n)
    overlaps = np.zeros((n, 3), np.float32)
    overlaps[np.arange(n), classes - 1] = rng.choice([0.4, 0.6, 0.7, 1], n)
    features = rng.standard_normal((n, num_features)).astype(np.float32)
    deltas = (features[:, :4] + 0.5 * rng.standard_normal((n, 4))) @ MIX + MEAN
    return Regions(features, np.zeros(n, int), overlaps, classes, deltas.astype(np.float32))


def fit(images, names=NAMES, **settings):
    # The scale is that of the finite features, so that it is the fit that tells of the others.
    finite = [image for image in images if np.isfinite(image.features).all()]
    return fit_box_regressors(iter(images), len(images), names, scale=feature_scale(finite, len(finite)), **settings)


def scale(images):
    return 20 / np.linalg.norm(np.concatenate([image.features for image in images]), axis=1).mean()


def near(images, j):
    """Features and deltas of the regions that a class is fitted to."""
    used = [(image.target_classes == j + 1) & (image.overlaps[:, j] > np.float32(0.6)) for image in images]
    features = np.concatenate([image.features[own] for image, own in zip(images, used, strict=True)])
    deltas = np.concatenate([image.deltas[own] for image, own in zip(images, used, strict=True)])
    return features.astype(np.float64), deltas.astype(np.float64)


def reference(features, deltas, regularisation):
    """The function of scaled features that rcnn_train_bbox_regressor.m and rcnn_predict_bbox_regressor.m define."""
    with_bias = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    mean = deltas.mean(axis=0)
    variances, vectors = np.linalg.eigh((deltas - mean).T @ (deltas - mean) / len(deltas))
    whiten = vectors @ np.diag(1 / np.sqrt(variances + 0.001)) @ vectors.T
    colour = vectors @ np.diag(np.sqrt(variances + 0.001)) @ vectors.T
    gram = with_bias.T @ with_bias + regularisation * np.eye(with_bias.shape[1])
    weights = np.linalg.inv(gram) @ with_bias.T @ (deltas - mean) @ whiten
    return lambda rows: (rows @ weights[:-1] + weights[-1]) @ colour + mean


@pytest.mark.parametrize("regularisation", [10.0, 1000.0])
@pytest.mark.parametrize("at_once", [1, 100, 1024])
def test_predictions_are_those_of_the_reference(monkeypatch, regularisation, at_once):
    monkeypatch.setattr(module, "_ROWS", at_once)
    images = [random_image(np.random.default_rng(seed)) for seed in range(10)]
    kernel, bias, lines = fit(images, regularisation=regularisation)
    factor = scale(images)
    for j in range(2):
        features, deltas = near(images, j)
        predict = reference(factor * features, deltas, regularisation)
        predicted = features @ kernel[:, j] + bias[j]
        np.testing.assert_allclose(predicted, predict(factor * features), atol=2e-6)
        # Neither the mean alone, nor what no regularisation gives.
        assert np.abs(predicted - deltas.mean(axis=0)).max() > 0.1
        assert lines[j] == f"{NAMES[j]}: {len(features):,} regions of IoU over 0.6"
    assert 0 < len(features) < 600


def test_a_planted_linear_map_is_recovered():
    rng = np.random.default_rng(0)
    planted, offset = rng.uniform(-0.1, 0.1, (12, 4)), rng.uniform(-0.1, 0.1, 4)
    images = [random_image(rng) for _ in range(5)]
    images = [replace(each, deltas=(each.features @ planted + offset).astype(np.float32)) for each in images]
    kernel, bias, _ = fit(images, regularisation=1e-6)
    for j in range(2):
        np.testing.assert_allclose(kernel[:, j], planted, atol=1e-6)
        np.testing.assert_allclose(bias[j], offset, atol=1e-6)


def test_scale_is_folded_into_the_kernel():
    images = [random_image(np.random.default_rng(seed)) for seed in range(3)]
    kernel, bias, _ = fit(images)
    larger, bias_of_larger, _ = fit([replace(image, features=8 * image.features) for image in images])
    np.testing.assert_allclose(8 * larger, kernel, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(bias_of_larger, bias, rtol=1e-5)


def test_a_region_counts_for_the_class_that_it_overlaps_most():
    image = random_image(np.random.default_rng(1))
    kernel, bias, lines = fit([image])
    # Objects of another class overlap by more than 0.6, but less.
    second = np.where(image.overlaps == image.overlaps.max(axis=1, keepdims=True), image.overlaps, 0.65)
    close = image.overlaps.max(axis=1) > 0.65
    other = replace(image, overlaps=np.where(close[:, None], second, image.overlaps).astype(np.float32))
    kernel_of_other, bias_of_other, lines_of_other = fit([other])
    np.testing.assert_array_equal(kernel_of_other, kernel)
    np.testing.assert_array_equal(bias_of_other, bias)
    assert lines_of_other == lines


@pytest.mark.parametrize("images", [[random_image(np.random.default_rng(2))], 3 * [None]])
def test_a_class_without_regions_leaves_boxes_as_they_are(images):
    empty = Regions(
        np.zeros((0, 12), np.float32), np.zeros(0, int), np.zeros((0, 3), np.float32), np.zeros(0, int),
        np.zeros((0, 4), np.float32),
    )  # fmt: skip
    kernel, bias, lines = fit([image or empty for image in images])
    assert kernel.shape == (12, 3, 4)
    assert not kernel[:, 2].any()
    assert not bias[2].any()
    assert lines[2] == "cow: 0 regions of IoU over 0.6: boxes stay as they are"


def test_images_without_regions_change_nothing():
    image = random_image(np.random.default_rng(3))
    empty = Regions(*(getattr(image, name)[:0] for name in image.__dataclass_fields__))
    for one, other in zip(fit([image]), fit([empty, image, empty]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_same_images_give_the_same_bits():
    images = [random_image(np.random.default_rng(seed)) for seed in range(3)]
    (kernel, bias, _), (again, bias_again, _) = fit(images), fit(images)
    assert again.tobytes() == kernel.tobytes()
    assert bias_again.tobytes() == bias.tobytes()


def test_bad_features_and_no_images_are_told_in_a_line():
    good = random_image(np.random.default_rng(4))
    with pytest.raises(UserError, match="image 2 "):
        fit([good, replace(good, features=np.full_like(good.features, np.inf))])
    with pytest.raises(UserError, match="no images"):
        fit([])


def test_boxes_move_onto_their_objects():
    rng = np.random.default_rng(5)

    def image():
        gt_boxes = np.array([[40, 50, 120, 110]], np.float32) + rng.uniform(0, 30, 4).astype(np.float32)
        proposals = gt_boxes + rng.uniform(-12, 12, (30, 4)).astype(np.float32)
        boxes = np.concatenate([gt_boxes, proposals])
        # A network that saw where the box lies in the object.
        seen = np.asarray(jax.jit(box_ops.encode, static_argnums=2)(boxes, gt_boxes, (1, 1, 1, 1)))
        features = np.concatenate([seen, seen**2, rng.standard_normal((31, 4))], axis=1).astype(np.float32)
        return label_regions(proposals, features, gt_boxes, np.array([2]), 3), boxes, gt_boxes

    made = [image() for _ in range(20)]
    kernel, bias, _ = fit([regions for regions, _, _ in made], regularisation=10.0)
    regions, boxes, gt_boxes = image()
    deltas = regions.features @ kernel[:, 1] + bias[1]
    moved = jax.jit(box_ops.decode, static_argnums=2)(deltas, boxes, (1, 1, 1, 1))
    before, after = (np.asarray(jax.jit(box_ops.iou)(each, gt_boxes)) for each in (boxes, moved))
    assert 1 - after[1:].mean() < 0.5 * (1 - before[1:].mean())
