"""R-CNN's three stages (Girshick et al., 2014): the network, one SVM a class, and box regressors."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mrcnn_jax import distributed
from mrcnn_jax.checkpoints.metadata import categories_from, config_from_dict, config_to_dict, describe
from mrcnn_jax.checkpoints.params import digest, load_params, save_params
from mrcnn_jax.data import sources
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.run import score_detector
from mrcnn_jax.files import whole_file
from mrcnn_jax.fitting.features import RegionFeatures
from mrcnn_jax.fitting.regions import feature_scale
from mrcnn_jax.fitting.ridge import fit_box_regressors
from mrcnn_jax.fitting.svm import fit_svms
from mrcnn_jax.models import plain
from mrcnn_jax.models.build import build
from mrcnn_jax.train import train

# The checkpoint with the SVMs, in the run's folder.
FOLDER = "svms"
# Images whose features tell how large features are, as in rcnn_feature_stats.m, which takes 200 regions of each.
_SCALED_BY = 200


def train_with_svms(config: ConfigDict, workdir: Path, *, log: Callable[[str], None] = print) -> dict[str, float]:
    """Train the network, then fit SVMs to its features and, with `config.svm.regressors`, box regressors.

    Each stage leaves a file in `workdir` (checkpoints, svms.npz, regressors.npz) and is not repeated where that is
    there, unless its settings changed. The detector is the checkpoint `workdir/svms`.

    Returns:
        The detector's figures, and the `minutes` of all stages.

    Raises:
        UserError: as `train` does, and where features are not finite.
        Interrupted: a signal came during `train`. During a fit Ctrl-C ends the run, which then starts that fit anew.
    """
    figures = train(config, workdir, log=log)
    params, batch_stats, metadata = load_params(workdir)
    trained = config_from_dict(metadata["config"])
    mesh = distributed.make_mesh()
    model = build(trained.model)
    variables = distributed.replicate({"params": params, "batch_stats": batch_stats}, mesh)
    train_data, _ = sources.load(config, "train")
    names, num_images, settings = train_data.classes, len(train_data.records), config.svm

    num_scaled_by = min(num_images, _SCALED_BY)

    def svms():
        features = RegionFeatures(model, variables, train_data, config, mesh, "scores")
        scale = feature_scale(features(first=num_scaled_by), num_scaled_by)
        return fit_svms(
            features(over=1.0), features(), num_images, names, scale=scale, c=settings.c,
            positive_weight=settings.positive_weight, negative_overlap=settings.negative_iou, seed=config.seed,
        )  # fmt: skip

    def regressors():
        features = RegionFeatures(model, variables, train_data, config, mesh, "deltas")
        scale = feature_scale(features(first=num_scaled_by), num_scaled_by)
        return fit_box_regressors(
            features(over=settings.min_iou), num_images, names, scale=scale,
            regularisation=settings.regularisation, min_overlap=settings.min_iou,
        )  # fmt: skip

    asked = {**config_to_dict(settings), "network": digest(variables, trained.model)}
    kernel, bias, minutes = _once(workdir / "svms.npz", svms, asked, log)
    predictor = params["box_0"]["predictor"]
    # Column 0 is the background, which an SVM knows nothing of.
    predictor["cls_score"] = {"kernel": np.pad(kernel, ((0, 0), (1, 0))), "bias": np.pad(bias, (1, 0))}
    if settings.regressors:
        kernel, bias, more = _once(workdir / "regressors.npz", regressors, asked, log)
        minutes += more
        scale = np.array(trained.model.box.weights[0], np.float32)
        predictor["bbox_pred"] = {
            "kernel": (kernel * scale).reshape(len(kernel), -1),
            "bias": (bias * scale).reshape(-1),
        }
    with trained.unlocked():
        # Without regressors fitted here, boxes go by those of the network, if it has learnt any (Fast R-CNN with SVMs).
        trained.model = plain.svms(trained.model, regress=settings.regressors or trained.model.box.regress)
    shutil.rmtree(workdir / FOLDER, ignore_errors=True)
    save_params(workdir / FOLDER, params, batch_stats, describe(trained, categories_from(metadata)))

    val_data, _ = sources.load(config, "val", train_data.categories)
    variables = {"params": params, "batch_stats": batch_stats}
    found = score_detector(variables, trained, val_data, workdir / FOLDER, name="with SVMs", log=log)
    return found | {"minutes": figures["minutes"] + minutes}


def _once(
    path: Path, fit: Callable[[], tuple[np.ndarray, np.ndarray, list[str]]], asked: dict, log: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Kernel, bias and minutes of a fit: of the file where it holds what is asked for, which else is written."""
    saved: Any = _read(path)
    if saved is None or saved["asked"] != asked:
        start = time.perf_counter()
        kernel, bias, lines = fit()
        told = {"asked": asked, "lines": lines, "minutes": (time.perf_counter() - start) / 60}
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez(file, kernel=kernel, bias=bias, told=json.dumps(told))
        saved = told | {"kernel": kernel, "bias": bias}
    for line in saved["lines"]:
        log(f"{path.stem}: {line}")
    return saved["kernel"], saved["bias"], saved["minutes"]


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            return json.loads(str(file["told"])) | {"kernel": file["kernel"], "bias": file["bias"]}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, and it is fitted anew") from error
