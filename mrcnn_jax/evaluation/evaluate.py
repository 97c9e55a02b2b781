"""Scores what a detector finds in a data set."""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np

from mrcnn_jax import distributed
from mrcnn_jax.conventions import Rule
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.coco_metrics import Backend, Kind, Metrics
from mrcnn_jax.evaluation.metrics import Metric, score, scored_kinds
from mrcnn_jax.evaluation.results import coco_results, rescale, write_json
from mrcnn_jax.hosts import together
from mrcnn_jax.interruption import leave_to_main_process
from mrcnn_jax.progress import Progress
from mrcnn_jax.types import Batch, Detections

# What a result of each kind holds. Masks go without the box, so that their own area tells small from large, as in
# Detectron2 and torchvision; the evaluators would take the area of the box instead.
_FIELDS = {"bbox": ("bbox",), "segm": ("segmentation",), "keypoints": ("keypoints", "bbox")}


def evaluate(
    detected: Iterable[tuple[Batch, Detections]],
    dataset: Dataset,
    *,
    kinds: Sequence[Kind] = ("bbox", "segm"),
    num_workers: int = 0,
    paste_rule: Rule = "detectron2",
    out_dir: Path | None = None,
    progress: bool = True,
    metric: Metric = "coco",
    backend: Backend = "hotcoco",
    max_detections: int = 100,
) -> tuple[dict[str, Metrics], list[dict]]:
    """Scores what is detected in every image of `dataset`.

    Detections are taken from the device one batch late, so that it works on the next meanwhile; pasting masks and
    run-length encoding are left to `num_workers` processes (0: done here). Each image is scored once, whether or not
    anything is found in it. A kind of which the data set has no annotation, or that the metric does not compare, is
    left out, and told.

    Over several hosts each detects in its share of the images; the first one scores them, and the others get ({}, []).

    With `out_dir`, `predictions_<kind>.json` (COCO results, which `mrcnn score` scores alike) and `metrics.json` are
    written.

    Args:
        detected: batches, and what was found in them in pixels of the padded images, on the device or not: every image
            of `dataset` once, on one of the hosts; rows that are not `valid` are passed over.
        dataset: ground truth and categories.
        kinds: what to score.
        metric: whose figures; `backend` and `max_detections` are for COCO's.
        paste_rule: whose rule makes pixels of masks, and rescales boxes.

    Returns:
        The metrics by kind, and all results as COCO has them, in the order of the data set's images.

    Raises:
        ValueError: an image came twice or not at all, or is not of the data set.
        UserError: a worker process died, or a file cannot be written.
    """
    truth = dataset.to_coco()
    ids = [image["id"] for image in truth["images"]]
    expected = set(ids)
    category_ids = [category.id for category in dataset.categories]
    kinds = [kind for kind in _scored(metric, kinds) if _has(truth, kind)]
    results: dict[int, list[dict]] = {}
    seen: set[int] = set()
    backlog: deque[tuple[int, Future]] = deque()

    def collect(batch: Batch, detections: Detections) -> None:
        """Fetches one batch from the device and hands its images on."""
        if "segm" not in kinds:
            detections = detections.replace(masks=None)
        if "keypoints" not in kinds:
            detections = detections.replace(keypoints=None)
        found = distributed.fetch(detections)
        for row in np.flatnonzero(np.asarray(batch.valid)):
            image_id, original = int(batch.image_id[row]), np.asarray(batch.original_size[row]).tolist()
            if image_id in seen or image_id not in expected:
                raise ValueError(f"image {image_id} {'came twice' if image_id in seen else 'is not in the data set'}")
            seen.add(image_id)
            one = jax.tree.map(lambda leaf, row=row: leaf[row], found)
            one = rescale(one, np.asarray(batch.size[row]).tolist(), original, paste_rule)
            if pool is None:
                results[image_id] = coco_results(one, image_id, original, category_ids, paste_rule=paste_rule)
            else:
                task = pool.submit(coco_results, one, image_id, original, category_ids, paste_rule=paste_rule)
                backlog.append((image_id, task))
        drain(8 * num_workers)
        if bar:
            bar.update(min(len(seen) * jax.process_count(), len(ids)))

    def drain(limit: int) -> None:
        """Waits until at most `limit` images are with the workers, so that a fast device cannot fill the memory."""
        while len(backlog) > limit:
            image_id, task = backlog.popleft()
            results[image_id] = task.result()

    spawn = multiprocessing.get_context("spawn")
    workers = (
        ProcessPoolExecutor(num_workers, mp_context=spawn, initializer=leave_to_main_process)
        if num_workers
        else nullcontext()
    )
    try:
        with workers as pool, Progress("evaluate", len(ids)) if progress else nullcontext() as bar:
            running = None
            for pair in detected:
                if running:
                    collect(*running)
                running = pair
            if running:
                collect(*running)
            drain(0)
    except BrokenProcessPool:
        raise UserError(
            f"one of {num_workers} evaluation processes died (out of memory, or started from a script without "
            "`if __name__ == '__main__':`): use config.eval.num_workers=0"
        ) from None
    everybody = together.gather(list(results.items()))
    if not together.first():
        return {}, []
    results = _joined(everybody, expected)
    flat = [result for image_id in ids for result in results[image_id]]
    metrics = {}
    for kind in kinds:
        of_kind = [_of_kind(result, kind) for result in flat]
        metrics[kind] = score(metric, truth, of_kind, kind, backend=backend, max_detections=max_detections)
        if out_dir:
            write_json(of_kind, Path(out_dir) / f"predictions_{kind}.json")
    if out_dir:
        write_json({kind: m.to_dict() for kind, m in metrics.items()}, Path(out_dir) / "metrics.json")
    return metrics, flat


def _joined(everybody: Iterable[Iterable[tuple[int, list[dict]]]], expected: set[int]) -> dict[int, list[dict]]:
    """The results of all hosts by image id: each image once, none without having been looked at."""
    results = {}
    for image_id, found in (pair for host in everybody for pair in host):
        if image_id in results:
            raise ValueError(f"image {image_id} came twice")
        results[image_id] = found
    if missing := sorted(expected - results.keys()):
        raise ValueError(f"{len(missing)} of {len(expected)} images never came: {missing[:10]}")
    return results


def _of_kind(result: dict, kind: str) -> dict:
    return {key: result[key] for key in ("image_id", "category_id", "score", *_FIELDS[kind])}


def _scored(metric: Metric, kinds: Sequence[Kind]) -> list[Kind]:
    """The kinds that the metric compares; says so of the others."""
    scored = scored_kinds(metric, kinds)
    if left_out := [kind for kind in kinds if kind not in scored]:
        print(f"evaluate: config.eval.metric={metric} does not compare {', '.join(left_out)}", flush=True)
    return scored


def _has(truth: dict, kind: str) -> bool:
    """Whether the ground truth can be scored by `kind`; says so if not."""
    field = _FIELDS[kind][0]
    if not truth["annotations"] or any(annotation.get(field) for annotation in truth["annotations"]):
        return True
    print(f"evaluate: no object of this data set has a {field}, so {kind} is not scored", flush=True)
    return False
