"""Evaluating a set of variables on a data set: detect on all devices, score on the host."""

import base64
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrcnn_jax import distributed
from mrcnn_jax.conventions import rule_of
from mrcnn_jax.data import pipeline
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.evaluation import augmented
from mrcnn_jax.evaluation.coco_metrics import Kind
from mrcnn_jax.evaluation.evaluate import evaluate
from mrcnn_jax.evaluation.metrics import metric_of
from mrcnn_jax.evaluation.proposer import Proposer
from mrcnn_jax.evaluation.recall import proposal_recall
from mrcnn_jax.evaluation.results import write_json
from mrcnn_jax.hosts import together
from mrcnn_jax.models.build import build
from mrcnn_jax.progress import Progress
from mrcnn_jax.types import Batch, Detections, Proposals

T = TypeVar("T")


class Evaluator:
    """Scores variables on one data set; compiles once a bucket, however often it is called."""

    def __init__(self, model: nn.Module, dataset: Dataset, config: ConfigDict, mesh: Mesh):
        if 0 < config.eval.num_images < len(dataset.records):
            dataset = dataset.subset(range(config.eval.num_images))
        self._dataset, self._config, self._mesh = dataset, config, mesh
        self._model, self._propose = model, Proposer(model, config, mesh)
        self._batch_size = distributed.fill_devices(config.eval.batch_size, mesh)
        self._detect, self._describe = self._compiled("detect"), self._compiled("describe")

    def __call__(
        self, variables: dict, out_dir: Path | None = None, *, between: Callable[[], None] = lambda: None
    ) -> dict:
        """The `Metrics` of `variables` by kind: 'bbox', and 'segm' and 'keypoints' where the model has them.

        Over several hosts each looks at its share of the images, and the first one scores them: the others get {}.
        `between` is called before each batch, on all hosts equally often.

        Of a model without a box stage there is one kind, 'proposals', and its `Recall`. With `out_dir`, the predictions
        of each kind and metrics.json are written. With `config.eval.augment`, images are looked at in these short sides
        and mirrored too.
        """
        config = self._config
        if config.model.box is None:
            return self._recall(variables, out_dir, between)
        detected = self._augmented(variables) if config.eval.get("augment") else self._detected(variables)
        metrics, _ = evaluate(
            _with(between, detected), self._dataset, kinds=_kinds(config.model), paste_rule=rule_of(config.model),
            num_workers=config.eval.num_workers, out_dir=out_dir, progress=True, backend=config.eval.backend,
            metric=metric_of(config),
        )  # fmt: skip
        return metrics

    def _compiled(self, method: str) -> Callable:
        """A method of the model as a function of variables and what is dealt out to the devices."""
        return distributed.data_parallel(
            lambda variables, inputs: self._model.apply(variables, *inputs, method=method), self._mesh
        )

    def _detected(self, variables: dict) -> Iterator[tuple[Batch, Detections]]:
        hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        for batch in pipeline.eval_loader(self._dataset, self._config, self._batch_size, **hosts):
            yield batch, self._detect(variables, distributed.shard((batch,), self._mesh))

    def _augmented(self, variables: dict) -> Iterator[tuple[Batch, Detections]]:
        box = self._config.model.box

        def run(compiled: Callable) -> Callable:
            return lambda *inputs: distributed.own_rows(compiled(variables, distributed.shard(inputs, self._mesh)))

        for variants in augmented.variants(self._dataset, self._config, self._batch_size):
            found = augmented.detect(
                run(self._detect), run(self._describe), variants,
                nms_threshold=box.nms_threshold, max_detections=box.max_detections,
            )  # fmt: skip
            batch = variants[0].batch
            # In pixels of the files.
            yield batch.replace(size=batch.original_size), found

    def _recall(self, variables: dict, out_dir: Path | None, between: Callable[[], None]) -> dict:
        found = {}
        with Progress("propose", len(self._dataset.records)) as progress:
            for image_id, proposals in _with(between, self._propose(variables, self._dataset)):
                found[image_id] = proposals
                progress.update(len(found) * jax.process_count())
        everybody = together.gather([(image_id, *_as_text(proposals)) for image_id, proposals in found.items()])
        if not together.first():
            return {}
        found = {image_id: _from_text(*texts) for host in everybody for image_id, *texts in host}
        recall = proposal_recall(self._dataset.to_coco(), found)
        if out_dir:
            write_json({"proposals": recall.to_dict()}, out_dir / "metrics.json")
        return {"proposals": recall}


def score_detector(
    variables: dict, config: ConfigDict, dataset: Dataset, out_dir: Path, *, name: str, log: Callable[[str], None]
) -> dict[str, float]:
    """The `headline` of finished weights on a data set, with a line of AP and AP50; files as of `Evaluator`."""
    mesh = distributed.make_mesh()
    evaluator = Evaluator(build(config.model), dataset, config, mesh)
    figures = headline(evaluator(distributed.replicate(variables, mesh), out_dir))
    shown = (f"{key} {value:.3f}" for key, value in figures.items() if key.endswith(("/AP", "/AP50")))
    log(f"{name}: {'  '.join(shown)}")
    return figures


def _with(between: Callable[[], None], items: Iterable[T]) -> Iterator[T]:
    for item in items:
        between()
        yield item


def _as_text(proposals: Proposals) -> tuple[str, str]:
    boxes, scores = (np.asarray(x, "<f4").tobytes() for x in (proposals.boxes, proposals.scores))
    return base64.b64encode(boxes).decode(), base64.b64encode(scores).decode()


def _from_text(boxes: str, scores: str) -> Proposals:
    numbers = np.frombuffer(base64.b64decode(scores), "<f4")
    return Proposals(np.frombuffer(base64.b64decode(boxes), "<f4").reshape(-1, 4), numbers, np.ones(len(numbers), bool))


def _kinds(model: ConfigDict) -> tuple[Kind, ...]:
    parts: dict[str, Kind] = {"mask": "segm", "keypoint": "keypoints"}
    return ("bbox", *(kind for part, kind in parts.items() if model.get(part) is not None))


def headline(metrics: dict) -> dict[str, float]:
    """The figures of `Evaluator` as one flat dict: box/AP, box/AP50, ..., mask/AP, ..., or proposals/AR100, ..."""
    names = {"bbox": "box", "segm": "mask", "keypoints": "keypoint", "proposals": "proposals"}
    return {f"{names[kind]}/{name}": value for kind, m in metrics.items() for name, value in m.figures.items()}
