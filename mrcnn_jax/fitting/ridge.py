"""Ridge regressors that move a region onto its object, one a class (R-CNN, appendix C)."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from mrcnn_jax.errors import UserError
from mrcnn_jax.fitting.regions import Regions, check_finite
from mrcnn_jax.progress import Progress

# Regions of a class are summed when there are this many, since each time f x f numbers are rewritten.
_ROWS = 1024


def fit_box_regressors(
    images: Iterable[Regions],
    num_images: int,
    class_names: Sequence[str],
    *,
    scale: float,
    regularisation: float = 1000.0,
    min_overlap: float = 0.6,
) -> tuple[Float32[np.ndarray, "f k 4"], Float32[np.ndarray, "k 4"], list[str]]:
    """Fits `features @ kernel + bias`, the (dx, dy, dw, dh) of `mrcnn_jax.ops.boxes` with weights of 1, for each class.

    A region, which may be a ground-truth box, counts for the class of the object that it overlaps most, if by more than
    `min_overlap`. As in rcnn_train_bbox_regressor.m, features are scaled (the kernel is for features as they come), the
    mean of the targets is taken off, and the bias is regularised with the rest. The reference also decorrelates the
    targets, and undoes that when it predicts: as all four share one lambda, the two cancel, and neither is done here.

    Normal equations are summed up, so that memory does not grow with the number of regions: 128 MiB a class for 4096
    features, 650 MiB for 9216 and 5 GiB for 25,088, and as much again while a sum is made or solved. A class of fewer
    than 1024 regions holds these instead, for 16, 36 or 98 MiB at most, and is solved by as many equations.

    Args:
        images: the regions of every image; those of no class's are not looked at, and need not be there.
        num_images: how many there are, for the time that is left.
        class_names: of the classes 1..k, for the report.
        scale: what features are multiplied by for the fit (`feature_scale`).
        regularisation: lambda, beside the sum of squared errors.
        min_overlap: the IoU above which a region is fitted.

    Returns:
        Kernel, bias, and one line a class: the number of its regions. A class without any has deltas of 0.

    Raises:
        UserError: there is no image, or features are not finite.
    """
    sums = [_Sums() for _ in class_names]
    num_features = None
    with Progress("box regressors: regions", num_images) as progress:
        for place, regions in enumerate(images):
            num_features = regions.features.shape[1]
            check_finite(regions.features, place)
            near = regions.overlaps.max(axis=1) > min_overlap
            for j in np.unique(regions.target_classes[near]) - 1:
                own = near & (regions.target_classes == j + 1)
                sums[j].add(regions.features[own], regions.deltas[own])
            progress.update(place + 1)
    if num_features is None:
        raise UserError("there are no images to fit box regressors to: name a data set that has some")
    kernel = np.zeros((num_features, len(class_names), 4), np.float32)
    bias = np.zeros((len(class_names), 4), np.float32)
    lines = []
    with Progress("box regressors", len(class_names)) as progress:
        for j, name in enumerate(class_names):
            if sums[j].num_regions:
                kernel[:, j], bias[j] = sums[j].solve(scale, regularisation)
            nothing = "" if sums[j].num_regions else ": boxes stay as they are"
            lines.append(f"{name}: {sums[j].num_regions:,} regions of IoU over {min_overlap:g}{nothing}")
            progress.update(j + 1, name)
    return kernel, bias, lines


class _Sums:
    """The normal equations of the regions of one class; x is a region's features and a 1, y its deltas."""

    def __init__(self):
        self.num_regions = 0
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_waiting = 0
        # Sums of x x' [f+1 f+1], x y' [f+1 4] and y [4], once there are any.
        self._xx: Any = None
        self._xy: Any = 0.0
        self._y: Any = 0.0

    def add(self, features: Float32[np.ndarray, "n f"], deltas: Float32[np.ndarray, "n 4"]) -> None:
        """Adds regions."""
        self.num_regions += len(features)
        self._waiting.append((features, deltas))
        self._num_waiting += len(features)
        if self._num_waiting >= _ROWS:
            self._sum_up()

    def solve(
        self, scale: float, regularisation: float
    ) -> tuple[Float64[np.ndarray, "f 4"], Float64[np.ndarray, " 4"]]:
        """Kernel and bias, for features that are not scaled, of a ridge regression on those that are; ends the sums."""
        if self._xx is None:
            return self._solve_few(scale, regularisation)
        if self._waiting:
            self._sum_up()
        # A weight for scaled features is `scale` times smaller, and so its square in the penalty.
        penalty = np.full(len(self._xx), regularisation / scale**2)
        penalty[-1] = regularisation
        mean = self._y / self.num_regions
        # The last column of the sum of x x' is the sum of x.
        xy = self._xy - self._xx[:, -1:] * mean
        self._xx[np.diag_indices_from(self._xx)] += penalty
        weights = np.linalg.solve(self._xx, xy)
        self._xx = None
        return weights[:-1], weights[-1] + mean

    def _solve_few(
        self, scale: float, regularisation: float
    ) -> tuple[Float64[np.ndarray, "f 4"], Float64[np.ndarray, " 4"]]:
        """The same solution from an equation a region instead of one a feature: X'(XX' + lambda)^-1 (Y - mean)."""
        features, deltas = (np.concatenate(each, dtype=np.float64) for each in zip(*self._waiting, strict=True))
        self._waiting = []
        mean = deltas.mean(axis=0)
        products = scale**2 * (features @ features.T) + 1
        products[np.diag_indices_from(products)] += regularisation
        residuals = np.linalg.solve(products, deltas - mean)
        return scale**2 * (features.T @ residuals), residuals.sum(axis=0) + mean

    def _sum_up(self) -> None:
        features, deltas = zip(*self._waiting, strict=True)
        x = np.ones((self._num_waiting, features[0].shape[1] + 1))
        np.concatenate(features, out=x[:, :-1])
        y = np.concatenate(deltas, dtype=np.float64)
        if self._xx is None:
            self._xx = np.zeros((x.shape[1], x.shape[1]))
        self._xx += x.T @ x
        self._xy += x.T @ y
        self._y += y.sum(axis=0)
        self._waiting, self._num_waiting = [], 0
