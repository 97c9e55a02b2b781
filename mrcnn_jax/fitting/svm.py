"""One linear SVM a class, fitted to region features by hard-negative mining (R-CNN, section 2.3 and appendix B)."""

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from mrcnn_jax.errors import UserError
from mrcnn_jax.fitting.regions import Regions, check_finite
from mrcnn_jax.progress import Progress

# The score of a class that could not be fitted, for any region: below every threshold, and finite.
NEVER = -1e6
# As in rcnn_train.m: the margin is at -1, so that a region below it has no part in the solution.
_HARD, _EASY = -1.0001, -1.2
# A class is fitted anew once more than this many negatives were added.
_FIT_AFTER = 2000
# The value of the feature whose weight is the bias: the larger, the less the bias is regularised.
_BIAS_FEATURE = 10.0
# A fit takes some tens of iterations.
_MAX_ITERATIONS = 10_000


def fit_svms(
    objects: Iterable[Regions],
    images: Iterable[Regions],
    num_images: int,
    class_names: Sequence[str],
    *,
    scale: float,
    c: float = 1e-3,
    positive_weight: float = 2.0,
    negative_overlap: float = 0.3,
    seed: int = 0,
) -> tuple[Float32[np.ndarray, "f k"], Float32[np.ndarray, " k"], list[str]]:
    """Fits `features @ kernel + bias`: hinge loss, L2, the bias regularised with the rest, as in rcnn_train.m.

    Positives of a class are its ground-truth boxes alone. Negatives are the regions that overlap every object of the
    class by less than `negative_overlap`; the others are left out.

    The positives come first. Then a pass over the images adds the negatives of each that score above the margin, all of
    them where the class has no SVM yet; fits a class anew when more than 2000 came; and then drops its negatives that
    score below -1.2. What was passed over or dropped is not looked at again, so that the result is nearly that of a fit
    to all negatives at once.

    Held in memory are the positives and, once for all classes, the negatives in use: 16 KiB a region for 4096 features,
    36 KiB for 9216 (16,000 objects and 50,000 hard negatives: 1.0 and 2.3 GiB). A fit takes some 30 bytes more for each
    feature of the class's own regions, 12 where it is 0.

    The same images and seed give the same bits.

    Args:
        objects: the regions of every image, of which the ground-truth boxes are looked at: others need not be there.
        images: the regions of every image, in an order that had better not go by content: mining finds less of a kind
            of negative that only the last images show.
        num_images: how many there are, for the time that is left.
        class_names: of the classes 1..k, for the report.
        scale: what features are multiplied by for the fit (`feature_scale`); the kernel is for features as they come.
        c: the weight of the losses beside half the squared norm of the weights.
        positive_weight: the weight of a positive's loss beside a negative's.
        negative_overlap: the IoU below which a region is a negative.
        seed: of the order in which the solver takes the regions.

    Returns:
        Kernel, bias, and one line a class: what it was fitted to, and whether that converged. A class without a
        positive or a negative has a kernel of 0 and a bias of -1e6, so that no threshold lets it through.

    Raises:
        UserError: there is no image, or features are not finite.
    """
    num_classes = len(class_names)
    positives = _positives(objects, num_images, num_classes)
    fitted = np.array([len(own) > 0 for own in positives])
    # A kernel of 0 finds every negative hard.
    kernel, bias = np.zeros((positives[0].shape[1], num_classes), np.float32), np.zeros(num_classes, np.float32)
    num_negatives, num_added, num_fits = (np.zeros(num_classes, int) for _ in range(3))
    converged = np.ones(num_classes, bool)
    cache = _Negatives(num_classes)

    def fit(j: int) -> None:
        rows = np.concatenate([positives[j], *cache.of(j)], dtype=np.float64)
        rows *= scale
        num_positives = len(positives[j])
        weights, bias[j], converged[j] = _linear_svm(rows, num_positives, c, positive_weight, seed)
        cache.keep(j, rows[num_positives:] @ weights + bias[j] >= _EASY)
        kernel[:, j] = scale * weights
        num_fits[j] += 1
        num_added[j] = 0

    with Progress("SVMs: hard negatives", num_images) as progress:
        for place, regions in enumerate(images):
            check_finite(regions.features, place)
            negative = regions.overlaps < negative_overlap
            hard = negative & fitted & (regions.features @ kernel + bias > _HARD)
            cache.add(regions.features, hard)
            num_negatives += negative.sum(axis=0)
            num_added += hard.sum(axis=0)
            for j in range(num_classes):
                if num_added[j] > (_FIT_AFTER if num_fits[j] else 0):
                    fit(j)
            progress.update(place + 1, f"{num_fits.sum():,} fits, {len(cache):,} negatives held")
    with Progress("SVMs: last fits", num_classes) as progress:
        for j, name in enumerate(class_names):
            if num_added[j]:
                fit(j)
            progress.update(j + 1, name)
    bias[num_fits == 0] = NEVER
    counts = (each.tolist() for each in (num_negatives, cache.counts(), num_fits, converged))
    lines = [_line(*one) for one in zip(class_names, map(len, positives), *counts, strict=True)]
    return kernel, bias, lines


def _positives(images: Iterable[Regions], num_images: int, num_classes: int) -> list[Float32[np.ndarray, "n f"]]:
    """The features of each class's objects."""
    found, nothing = [[] for _ in range(num_classes)], None
    with Progress("SVMs: objects", num_images) as progress:
        for place, regions in enumerate(images):
            check_finite(regions.features, place)
            nothing = regions.features[:0]
            for class_id in np.unique(regions.classes[regions.classes > 0]):
                found[class_id - 1].append(regions.features[regions.classes == class_id])
            progress.update(place + 1)
    if nothing is None:
        raise UserError("there are no images to fit SVMs to: name a data set that has some")
    # One class after the other, so that few are held twice.
    return [np.concatenate([nothing, *found.pop(0)]) for _ in range(num_classes)]


def _linear_svm(
    rows: Float64[np.ndarray, "n f"], num_positives: int, c: float, positive_weight: float, seed: int
) -> tuple[Float64[np.ndarray, " f"], float, bool]:
    """Weights, bias and whether the solver converged; positives come first."""
    svm = LinearSVC(
        loss="hinge", C=c, class_weight={1: positive_weight}, intercept_scaling=_BIAS_FEATURE,
        max_iter=_MAX_ITERATIONS, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        # It is the report that tells.
        warnings.simplefilter("ignore", ConvergenceWarning)
        svm.fit(rows, np.arange(len(rows)) < num_positives)
    return np.asarray(svm.coef_)[0], float(np.asarray(svm.intercept_)[0]), bool(svm.n_iter_ < _MAX_ITERATIONS)


def _line(name: str, num_positives: int, num_negatives: int, num_held: int, num_fits: int, converged: bool) -> str:
    if not num_fits:
        return f"{name}: {num_positives:,} ground-truth boxes, {num_negatives:,} negatives; never detected"
    unfinished = "" if converged else f"; the last fit had not converged after {_MAX_ITERATIONS:,} iterations"
    return (
        f"{name}: {num_positives:,} ground-truth boxes, {num_held:,} hard ones of {num_negatives:,} negatives, "
        f"{num_fits} fits{unfinished}"
    )


class _Negatives:
    """Regions that are a hard negative of some class, image by image in the order of addition."""

    def __init__(self, num_classes: int):
        self._num_classes = num_classes
        # Features [n f], and of which classes each region is a negative [n k]: at least of one.
        self._images: list[tuple[np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return sum(len(features) for features, _ in self._images)

    def counts(self) -> Int[np.ndarray, " k"]:
        """The number of each class's negatives."""
        return sum((of_class.sum(axis=0) for _, of_class in self._images), np.zeros(self._num_classes, int))

    def add(self, features: Float32[np.ndarray, "n f"], of_class: Bool[np.ndarray, "n k"]) -> None:
        """Adds the rows that are a negative of some class."""
        used = of_class.any(axis=1)
        if used.any():
            self._images.append((features[used], of_class[used]))

    def of(self, j: int) -> list[Float32[np.ndarray, "_ f"]]:
        """The features of a class's negatives."""
        return [features[of_class[:, j]] for features, of_class in self._images if of_class[:, j].any()]

    def keep(self, j: int, kept: Bool[np.ndarray, " n"]) -> None:
        """Drops those of a class's negatives, in the order of `of`, that are not `kept`."""
        images, self._images, start = self._images, [], 0
        for features, of_class in images:
            own = np.flatnonzero(of_class[:, j])
            of_class[own, j] = kept[start : start + len(own)]
            start += len(own)
            if of_class.any(axis=1).all():
                self._images.append((features, of_class))
            else:
                self.add(features, of_class)
