"""Labels of regions against the box geometry of the networks."""

import jax
import numpy as np
import pytest

from mrcnn_jax.errors import UserError
from mrcnn_jax.fitting.regions import Regions, encode, feature_scale, label_regions
from mrcnn_jax.ops import boxes as box_ops


def random_boxes(rng, n):
    corner = rng.uniform(0, 80, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 60, (n, 2))], axis=1).astype(np.float32)


def test_labels_are_those_of_the_networks_geometry():
    rng = np.random.default_rng(0)
    proposals, gt_boxes = random_boxes(rng, 200), random_boxes(rng, 5)
    gt_classes = np.array([3, 1, 3, 1, 4])
    features = rng.random((205, 7), np.float32)
    regions = label_regions(proposals, features, gt_boxes, gt_classes, 4)

    boxes = np.concatenate([gt_boxes, proposals])
    iou = np.asarray(jax.jit(box_ops.iou)(boxes, gt_boxes))
    nearest = iou.argmax(axis=1)
    deltas = jax.jit(box_ops.encode, static_argnums=2)(gt_boxes[nearest], boxes, (1, 1, 1, 1))
    touches = iou.max(axis=1) > 0
    assert 0 < touches.sum() < 205
    assert regions.features is features
    np.testing.assert_array_equal(regions.classes, [3, 1, 3, 1, 4] + 200 * [0])
    for j in range(4):
        expected = iou[:, gt_classes == j + 1].max(axis=1, initial=0)
        np.testing.assert_allclose(regions.overlaps[:, j], expected, atol=1e-6)
    np.testing.assert_array_equal(regions.target_classes, np.where(touches, gt_classes[nearest], 0))
    np.testing.assert_allclose(regions.deltas, np.where(touches[:, None], deltas, 0), atol=1e-5)
    np.testing.assert_array_equal(regions.deltas[:5], 0)


def test_deltas_turn_a_region_into_its_object():
    rng = np.random.default_rng(1)
    proposals, gt_boxes = random_boxes(rng, 50), random_boxes(rng, 1)
    regions = label_regions(proposals, np.zeros((51, 1), np.float32), gt_boxes, np.array([2]), 2)
    own = regions.target_classes[1:] == 2
    decoded = jax.jit(box_ops.decode, static_argnums=2)(regions.deltas[1:][own], proposals[own], (1, 1, 1, 1))
    np.testing.assert_allclose(decoded, np.repeat(gt_boxes, own.sum(), axis=0), atol=1e-4)


def test_zero_size_counts_as_one_pixel_as_in_the_network():
    boxes = np.array([[3, 3, 3, 3], [0, 0, 4, 4], [9, 9, 2, 2]], np.float32)
    reference = np.array([[0, 0, 4, 4], [5, 5, 5, 5], [0, 0, 0, 0]], np.float32)
    expected = jax.jit(box_ops.encode, static_argnums=2)(boxes, reference, (1, 1, 1, 1))
    np.testing.assert_allclose(encode(boxes, reference), expected, rtol=1e-6)


@pytest.mark.parametrize("num_proposals", [0, 3])
def test_an_image_without_objects(num_proposals):
    proposals = random_boxes(np.random.default_rng(2), num_proposals)
    features = np.ones((num_proposals, 7), np.float32)
    regions = label_regions(proposals, features, np.zeros((0, 4), np.float32), np.zeros(0, int), 2)
    assert regions.overlaps.shape == (num_proposals, 2)
    for labels in (regions.classes, regions.overlaps, regions.target_classes, regions.deltas):
        assert len(labels) == num_proposals
        assert not labels.any()


def test_an_image_with_objects_alone():
    gt_boxes = random_boxes(np.random.default_rng(3), 2)
    regions = label_regions(np.zeros((0, 4), np.float32), np.ones((2, 7), np.float32), gt_boxes, np.array([1, 2]), 2)
    np.testing.assert_array_equal(regions.target_classes, [1, 2])
    np.testing.assert_array_equal(np.diag(regions.overlaps), 1)


def with_features(features):
    labels = np.zeros(len(features), int)
    overlaps, deltas = np.zeros((len(features), 2), np.float32), np.zeros((len(features), 4), np.float32)
    return Regions(features, labels, overlaps, labels, deltas)


def test_scaled_features_have_a_mean_norm_of_20():
    features = np.random.default_rng(4).random((30, 5), np.float32)
    scale = feature_scale(map(with_features, [features[:10], features[10:10], features[10:]]), 3)
    assert np.linalg.norm(scale * features, axis=1).mean() == pytest.approx(20)
    assert feature_scale([with_features(0 * features)], 1) == feature_scale([], 0) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_features_that_are_not_finite_name_the_image(value):
    images = [with_features(np.ones((2, 3), np.float32)), with_features(np.full((2, 3), value, np.float32))]
    with pytest.raises(UserError, match="image 2 "):
        feature_scale(images, 2)
