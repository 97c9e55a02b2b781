"""SVMs against scikit-learn, against their objective, and mined against fitted to all negatives at once."""

import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from mrcnn_jax.errors import UserError
from mrcnn_jax.fitting import svm as module
from mrcnn_jax.fitting.regions import Regions, feature_scale
from mrcnn_jax.fitting.svm import NEVER, _Negatives, fit_svms

NAMES = ["cat", "dog"]


def regions(features, classes, overlaps):
    n = len(features)
    return Regions(
        features.astype(np.float32),
        classes,
        overlaps.astype(np.float32),
        np.zeros(n, int),
        np.zeros((n, 4), np.float32),
    )


def fit(images, names=NAMES, **settings):
    # The scale is that of the finite features, so that it is the fit that tells of the others.
    finite = [image for image in images if np.isfinite(image.features).all()]
    scale = feature_scale(finite, len(finite))
    return fit_svms(images, iter(images), len(images), names, scale=scale, **settings)


def random_image(rng, num_objects, num_proposals, num_features=16, shift=4.0):
    """Objects of class j lie `shift` further along axis j, proposals are noise; some half overlap an object."""
    classes = np.concatenate([[1, 2], rng.integers(1, 3, num_objects - 2), np.zeros(num_proposals, int)])
    features = rng.standard_normal((len(classes), num_features))
    overlaps = np.zeros((len(classes), 2))
    for j in range(2):
        overlaps[classes == j + 1, j] = 1
        features[classes == j + 1, j] += shift
    near = num_objects + rng.integers(0, num_proposals, num_proposals // 10)
    overlaps[near, rng.integers(0, 2, len(near))] = rng.uniform(0.3, 0.9, len(near))
    return regions(features, classes, overlaps)


def together(images, j, negative_overlap=0.3):
    """Scaled features and labels of all positives and negatives of a class."""
    features = np.concatenate([image.features for image in images]).astype(np.float64)
    classes = np.concatenate([image.classes for image in images])
    overlaps = np.concatenate([image.overlaps for image in images])[:, j]
    scale = 20 / np.linalg.norm(features, axis=1).mean()
    used = (classes == j + 1) | (overlaps < negative_overlap)
    return scale * features[used], (classes == j + 1)[used], scale


def objective(weights, bias, features, positive):
    """rcnn_train.m's: half the squared norm, with the bias as the weight of a feature of 10, and weighted losses."""
    margin = np.where(positive, 1, -1) * (features @ weights + bias)
    losses = np.where(positive, 2e-3, 1e-3) * np.maximum(0, 1 - margin)
    return 0.5 * weights @ weights + 0.5 * (bias / 10) ** 2 + losses.sum()


def scikit_learn(features, positive):
    svm = LinearSVC(loss="hinge", C=1e-3, intercept_scaling=10, class_weight={1: 2.0}, random_state=0, max_iter=10_000)
    svm.fit(features, positive)
    return svm.coef_[0], svm.intercept_[0]


def test_one_image_gives_scikit_learns_svm():
    image = random_image(np.random.default_rng(0), 30, 300)
    kernel, bias, lines = fit([image])
    for j in range(2):
        features, positive, scale = together([image], j)
        weights, offset = scikit_learn(features, positive)
        # Rows come in another order, in which the solver stops at another point.
        np.testing.assert_allclose(kernel[:, j], scale * weights, atol=2e-4 * np.abs(scale * weights).max())
        np.testing.assert_allclose(bias[j], offset, atol=1e-4)
        num_positives = (image.classes == j + 1).sum()
        assert lines[j].startswith(f"{NAMES[j]}: {num_positives} ground-truth boxes, ")
        assert lines[j].endswith(f" of {len(positive) - num_positives} negatives, 1 fits")


def coordinate_descent(features, positive):
    """The textbook's solver of the dual (Hsieh et al. 2008): weights, and the bias as the weight of a feature of 10."""
    rows = np.where(positive, 1, -1)[:, None] * np.concatenate([features, np.full((len(features), 1), 10)], axis=1)
    most, squares = np.where(positive, 2e-3, 1e-3), (rows**2).sum(axis=1)
    alpha, weights = np.zeros(len(rows)), np.zeros(rows.shape[1])
    for _ in range(500):
        for i, row in enumerate(rows):
            new = min(max(alpha[i] - (row @ weights - 1) / squares[i], 0), most[i])
            weights += (new - alpha[i]) * row
            alpha[i] = new
    return weights[:-1], 10 * weights[-1]


def test_the_objective_is_that_of_the_reference():
    image = random_image(np.random.default_rng(1), 20, 100)
    kernel, bias, _ = fit([image])
    features, positive, scale = together([image], 0)
    weights, offset = coordinate_descent(features, positive)
    least = objective(weights, offset, features, positive)
    assert objective(kernel[:, 0] / scale, bias[0], features, positive) == pytest.approx(least, rel=1e-5)
    np.testing.assert_allclose(kernel[:, 0], scale * weights, atol=1e-3 * np.abs(scale * weights).max())
    assert bias[0] == pytest.approx(offset, rel=1e-3)


def test_planted_directions_are_found_and_positives_rank_first():
    rng = np.random.default_rng(2)
    images = [random_image(rng, 4, 60, shift=8.0) for _ in range(20)]
    kernel, bias, _ = fit(images)
    features = np.concatenate([image.features for image in images])
    classes = np.concatenate([image.classes for image in images])
    for j in range(2):
        assert kernel[j, j] > 3 * np.abs(np.delete(kernel[:, j], j)).max()
        scores = features @ kernel[:, j] + bias[j]
        assert scores[classes == j + 1].min() > scores[classes != j + 1].max()


def planted_images(rng, first):
    """60 images; from the `first` on they show regions that would be of the first class but for axis 2."""
    images = [random_image(rng, 3, 100) for _ in range(60)]
    for image in images[first:]:
        hard = np.flatnonzero((image.classes == 0) & (image.overlaps[:, 0] < 0.3))[:6]
        image.features[hard, 0] += 4.0
        image.features[hard, 2] += 3.0
    return images


def distance(images, kernel, bias, j):
    """From a fit to all negatives: the objective's excess, as a share, and the scores' mean error in deviations."""
    features, positive, scale = together(images, j)
    weights, offset = scikit_learn(features, positive)
    excess = objective(kernel[:, j] / scale, bias[j], features, positive) / objective(
        weights, offset, features, positive
    )
    expected = features @ weights + offset
    difference = np.abs(features / scale @ kernel[:, j] + bias[j] - expected) / expected.std()
    return excess - 1, difference.mean()


# Bounds are twice to three times what eight seeds gave at most. Where all images but the first show the planted kind,
# the excess was 7e-4, and scores were off by 0.06 deviations in the mean. Where the last third alone does, 0.04 and
# 0.18: what was passed over before is not looked at again. An SVM of the first ten images exceeded it by 0.09 or more.
@pytest.mark.parametrize("fit_after", [100, 500, 2000])
@pytest.mark.parametrize(("first", "most_excess", "most_difference"), [(1, 2e-3, 0.15), (40, 0.1, 0.4)])
def test_mining_is_nearly_a_fit_to_all_negatives_at_once(monkeypatch, fit_after, first, most_excess, most_difference):
    monkeypatch.setattr(module, "_FIT_AFTER", fit_after)
    images = planted_images(np.random.default_rng(3), first)
    kernel, bias, lines = fit(images)
    for j in range(2):
        excess, difference = distance(images, kernel, bias, j)
        # The solver stops a little above the least.
        assert -1e-4 < excess < most_excess
        assert difference < most_difference
        assert num_held(lines[j]) < 600
    without_the_rest, _ = distance(images, *fit(images[:10])[:2], 0)
    assert without_the_rest > max(0.05, 3 * distance(images, kernel, bias, 0)[0])


def num_held(line):
    return int(re.search(r"([\d,]+) hard ones of 5,\d\d\d negatives", line)[1].replace(",", ""))


def test_negatives_are_held_once_and_dropped_with_their_last_class():
    features = np.arange(8, dtype=np.float32).reshape(4, 2)
    cache = _Negatives(2)
    cache.add(features, np.array([[True, False], [False, False], [True, True], [False, True]]))
    cache.add(features[:1] + 10, np.array([[True, False]]))
    assert len(cache) == 4
    assert cache.counts().tolist() == [3, 2]
    np.testing.assert_array_equal(np.concatenate(cache.of(0)), [[0, 1], [4, 5], [10, 11]])
    cache.keep(0, np.array([False, False, True]))
    assert len(cache) == 3
    assert cache.counts().tolist() == [1, 2]
    np.testing.assert_array_equal(np.concatenate(cache.of(0)), [[10, 11]])
    np.testing.assert_array_equal(np.concatenate(cache.of(1)), [[4, 5], [6, 7]])
    cache.keep(1, np.array([False, False]))
    cache.keep(0, np.array([False]))
    assert len(cache) == 0
    assert cache.counts().tolist() == [0, 0]


def test_scale_is_folded_into_the_kernel():
    images = [random_image(np.random.default_rng(seed), 4, 50) for seed in range(3)]
    kernel, bias, _ = fit(images)
    larger = [replace(image, features=8 * image.features) for image in images]
    kernel_of_larger, bias_of_larger, _ = fit(larger)
    np.testing.assert_allclose(8 * kernel_of_larger, kernel, rtol=1e-5)
    np.testing.assert_allclose(bias_of_larger, bias, rtol=1e-5)


def test_a_class_without_objects_never_wins():
    image = random_image(np.random.default_rng(4), 5, 50)
    image.classes[image.classes == 2] = 0
    kernel, bias, lines = fit([image])
    assert kernel[:, 0].any()
    assert not kernel[:, 1].any()
    assert (image.features @ kernel + bias)[:, 1].max() == NEVER
    assert lines[1] == f"dog: 0 ground-truth boxes, {(image.overlaps[:, 1] < 0.3).sum()} negatives; never detected"


def test_a_class_without_negatives_never_wins():
    image = random_image(np.random.default_rng(5), 5, 50)
    image.overlaps[:, 1] = 0.3
    kernel, bias, lines = fit([image])
    assert not kernel[:, 1].any()
    assert bias[1] == NEVER
    assert lines[1] == f"dog: {(image.classes == 2).sum()} ground-truth boxes, 0 negatives; never detected"


def test_images_without_regions_change_nothing():
    rng = np.random.default_rng(6)
    images = [random_image(rng, 4, 50) for _ in range(3)]
    empty = regions(np.zeros((0, 16)), np.zeros(0, int), np.zeros((0, 2)))
    kernel, bias, lines = fit(images)
    padded = fit([empty, images[0], empty, *images[1:], empty])
    np.testing.assert_array_equal(padded[0], kernel)
    np.testing.assert_array_equal(padded[1], bias)
    assert padded[2] == lines


def test_regions_that_overlap_an_object_change_nothing():
    rng = np.random.default_rng(7)
    image = random_image(rng, 4, 50)
    near = regions(image.features[:5], np.zeros(5, int), np.full((5, 2), 0.3))
    kernel, bias, lines = fit([image, replace(near, features=near.features[:, ::-1])])
    # Of the same norms, so that the scale is the same.
    other, other_bias, other_lines = fit([image, near])
    np.testing.assert_array_equal(other, kernel)
    np.testing.assert_array_equal(other_bias, bias)
    assert other_lines == lines


def test_the_same_seed_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(module, "_FIT_AFTER", 200)
    images = [random_image(np.random.default_rng(seed), 4, 100) for seed in range(8)]
    kernel, bias, lines = fit(images, seed=1)
    again, bias_again, lines_again = fit(images, seed=1)
    assert again.tobytes() == kernel.tobytes()
    assert bias_again.tobytes() == bias.tobytes()
    assert lines_again == lines
    assert fit(images, seed=2)[0].tobytes() != kernel.tobytes()


def test_a_class_that_does_not_converge_is_reported(monkeypatch):
    monkeypatch.setattr(module, "_MAX_ITERATIONS", 2)
    _, _, lines = fit([random_image(np.random.default_rng(8), 10, 100)])
    for line in lines:
        assert line.endswith("1 fits; the last fit had not converged after 2 iterations")


def test_bad_features_and_no_images_are_told_in_a_line():
    good = random_image(np.random.default_rng(9), 4, 10)
    bad = replace(good, features=np.full_like(good.features, np.nan))
    with pytest.raises(UserError, match="image 2 "):
        fit([good, bad])
    with pytest.raises(UserError, match="no images"):
        fit([])
