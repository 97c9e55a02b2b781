"""The metrics by name, as `config.eval.metric` and `mrcnn score --metric` choose one of them."""

from collections.abc import Sequence
from typing import Literal

from ml_collections import ConfigDict

from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation import cityscapes_metrics, coco_json, coco_metrics, voc_metrics
from mrcnn_jax.evaluation.coco_metrics import Backend, Kind, Metrics

Metric = Literal["coco", "voc07", "voc12", "cityscapes"]

# What each metric compares, and the figure by which the best checkpoint of a run is chosen.
_KINDS: dict[Metric, tuple[Kind, ...]] = {
    "coco": ("bbox", "segm", "keypoints"),
    "voc07": ("bbox",),
    "voc12": ("bbox",),
    "cityscapes": ("segm",),
}
_BEST: dict[Metric, str] = {"coco": "box/AP", "voc07": "box/AP50", "voc12": "box/AP50", "cityscapes": "mask/AP"}
# Of a model that finds proposals alone, whatever the metric.
_BEST_PROPOSALS = "proposals/AR1000"


def score(
    metric: Metric,
    gt: coco_json.Source,
    dt: coco_json.Source,
    kind: Kind = "bbox",
    *,
    backend: Backend = "hotcoco",
    max_detections: int = 100,
) -> Metrics:
    """Scores COCO results against COCO ground truth by the metric of that name.

    `backend` and `max_detections` are for COCO's figures; see the modules of the metrics for the rest.

    Raises:
        UserError: the metric does not compare this kind, or the input is not what it should be.
    """
    if kind not in _KINDS[metric]:
        raise UserError(f"the metric {metric} compares {', '.join(_KINDS[metric])}, not {kind}: choose another")
    if metric == "coco":
        return coco_metrics.score(gt, dt, kind, backend=backend, max_detections=max_detections)
    if metric == "cityscapes":
        return cityscapes_metrics.score(gt, dt)
    return voc_metrics.score(gt, dt, metric)


def metric_of(config: ConfigDict) -> Metric:
    """`config.eval.metric`; COCO's where a config of an earlier version lacks it. Raises `UserError` for another."""
    name = config.eval.get("metric", "coco")
    if name not in _KINDS:
        *names, last = map(repr, _KINDS)
        raise UserError(f"config.eval.metric={name!r} is not known: use {', '.join(names)} or {last}")
    return name


def scored_kinds(metric: Metric, kinds: Sequence[Kind]) -> list[Kind]:
    """Those of `kinds` that the metric compares."""
    return [kind for kind in kinds if kind in _KINDS[metric]]


def best_figure(config: ConfigDict) -> str:
    """The figure by which the best checkpoint is chosen."""
    return _BEST_PROPOSALS if config.model.get("box") is None else _BEST[metric_of(config)]
