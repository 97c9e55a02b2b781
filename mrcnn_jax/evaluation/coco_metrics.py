"""COCO's figures: average precision and recall of boxes, masks or keypoints."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import hotcoco
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation import coco_json

Kind = Literal["bbox", "segm", "keypoints"]
Backend = Literal["hotcoco", "pycocotools"]

# The constants of the object keypoint similarity, one for each point (cocodataset.org, "Keypoint Evaluation").
_COCO_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


@dataclass(frozen=True)
class Metrics:
    """The figures of one kind of score, from 0 to 1; -1 where the ground truth has no object that would define one."""

    # What was compared, or for Pascal VOC's figures their name.
    kind: str
    # AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl; for keypoints AP AP50 AP75 APm APl AR AR50 AR75 ARm ARl.
    figures: dict[str, float]
    # A figure of each category by its name; empty if categories were not told apart.
    per_class: dict[str, float]
    num_images: int
    num_objects: int
    num_detections: int
    # What had to be mended or is worth knowing, one line for each sort.
    notes: tuple[str, ...] = ()
    # Which figure `per_class` has.
    class_figure: str = "AP"

    def __getitem__(self, name: str) -> float:
        return self.figures[name]

    def to_dict(self) -> dict:
        """Everything, ready for JSON."""
        return asdict(self) | {"notes": list(self.notes)}

    def table(self) -> str:
        """Everything, for a terminal of 80 columns or more."""
        lines = [f"{self.kind}: {self.num_images} images, {self.num_objects} objects, {self.num_detections} detections"]
        lines.append(" ".join(f"{name:>5}" for name in self.figures))
        lines.append(" ".join(f"{shown(value):>5}" for value in self.figures.values()))
        if self.per_class:
            width = min(max(map(len, self.per_class)), 30)
            cells = [f"{name[:width]:<{width}} {shown(value):>5}" for name, value in self.per_class.items()]
            columns = max(1, 80 // (width + 9))
            rows = -(-len(cells) // columns)
            lines += [f"{self.class_figure} of each class"]
            lines += ["   ".join(cells[row::rows]) for row in range(rows)]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def score(
    gt: coco_json.Source,
    dt: coco_json.Source,
    kind: Kind = "bbox",
    *,
    backend: Backend = "hotcoco",
    use_categories: bool = True,
    max_detections: int = 100,
) -> Metrics:
    """Scores COCO results against COCO ground truth, over every image of the ground truth.

    Both evaluators give the same figures; `pycocotools` is the reference and `hotcoco` the faster one. Input is
    completed and checked first (`coco_json`).

    Args:
        gt: ground truth, parsed or a path.
        dt: results, parsed or a path; may be empty.
        kind: what is compared: boxes, masks or keypoints.
        backend: the evaluator.
        use_categories: False pools all categories, as for class-agnostic proposals.
        max_detections: how many detections of an image (and category) count, best first; for keypoints at most 20, as
            COCO has it.

    Raises:
        UserError: see `coco_json.ground_truth` and `coco_json.detections`; or fewer than 11 detections are asked for.
    """
    if max_detections <= 10:
        raise UserError(f"max_detections = {max_detections}: COCO's AR1 and AR10 need more than 10")
    truth, notes = coco_json.ground_truth(gt, kind)
    found, more_notes = coco_json.detections(dt, truth, kind, use_categories)
    limits = [min(20, max_detections)] if kind == "keypoints" else [1, 10, max_detections]
    num_objects, num_detections = len(truth["annotations"]), len(found)
    results = {"images": truth["images"], "categories": truth["categories"], "annotations": found}

    if backend == "hotcoco":
        evaluator = hotcoco.COCOeval(hotcoco.COCO(truth), hotcoco.COCO(results), kind)
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = pycocotools.cocoeval.COCOeval(_pycoco(truth), _pycoco(results), kind)
    evaluator.params.maxDets = limits
    evaluator.params.useCats = use_categories
    if kind == "keypoints":
        evaluator.params.kpt_oks_sigmas = _sigmas(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
    accumulated = evaluator.eval or {}
    precision, recall = accumulated["precision"], accumulated["recall"]

    if num_difficult := sum(annotation.get("difficult", 0) for annotation in truth["annotations"]):
        notes += (f"{num_difficult} of {num_objects} objects are difficult, which COCO's figures count as any other",)
    labels = class_labels(truth["categories"]).values() if use_categories else ()
    per_class = {label: _mean(precision[:, :, k, 0, -1]) for k, label in enumerate(labels)}
    return Metrics(
        kind=kind,
        figures=_keypoint_figures(precision, recall) if kind == "keypoints" else _figures(precision, recall, limits),
        per_class=per_class,
        num_images=len(truth["images"]),
        num_objects=num_objects,
        num_detections=num_detections,
        notes=notes + more_notes,
    )


def class_labels(categories: Sequence[dict]) -> dict[int, str]:
    """Category ids in order and a name for each, made distinct by the id where two have the same."""
    names = [category["name"] for category in categories]
    ordered = sorted((category["id"], category["name"]) for category in categories)
    return {number: name if names.count(name) == 1 else f"{name} ({number})" for number, name in ordered}


def _figures(precision: np.ndarray, recall: np.ndarray, limits: list[int]) -> dict[str, float]:
    """precision [iou, recall, class, area, limit], recall [iou, class, area, limit]; IoU .50 is row 0 and .75 row 5."""
    figures = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
    }
    figures |= {f"AP{size}": _mean(precision[:, :, :, area, -1]) for area, size in enumerate("sml", 1)}
    figures |= {f"AR{limit}": _mean(recall[:, :, 0, i]) for i, limit in enumerate(limits)}
    figures |= {f"AR{size}": _mean(recall[:, :, area, -1]) for area, size in enumerate("sml", 1)}
    return figures


def _keypoint_figures(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    figures = {}
    for name, array in (("AP", precision), ("AR", recall)):
        figures |= {
            name: _mean(array[..., 0, -1]),
            f"{name}50": _mean(array[0, ..., 0, -1]),
            f"{name}75": _mean(array[5, ..., 0, -1]),
            f"{name}m": _mean(array[..., 1, -1]),
            f"{name}l": _mean(array[..., 2, -1]),
        }
    return figures


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def shown(value: float) -> str:
    """A figure for a table."""
    return "n/a" if value < 0 else f"{value:.3f}"


def _sigmas(truth: dict) -> np.ndarray:
    """COCO's constants for its seventeen points; for any other skeleton their mean, for every point."""
    points = len(truth["annotations"][0]["keypoints"]) // 3 if truth["annotations"] else len(_COCO_SIGMAS)
    return _COCO_SIGMAS if points == len(_COCO_SIGMAS) else np.full(points, _COCO_SIGMAS.mean())


def _pycoco(data: dict) -> pycocotools.coco.COCO:
    coco = pycocotools.coco.COCO()
    coco.dataset = data
    coco.createIndex()
    return coco
