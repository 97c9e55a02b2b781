"""What users hold: an architecture with its config and classes and, once loaded, its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from mrcnn_jax.checkpoints.importing import import_weights
from mrcnn_jax.checkpoints.metadata import categories_from, config_from_dict
from mrcnn_jax.checkpoints.params import load_params
from mrcnn_jax.config_files import override
from mrcnn_jax.conventions import rule_of
from mrcnn_jax.data import images as image_files
from mrcnn_jax.data.collate import fit_proposals, no_proposals, stack
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.data.proposals import best_first
from mrcnn_jax.data.transforms import resize, resized_shape
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.results import to_image
from mrcnn_jax.models import architectures
from mrcnn_jax.models.build import build, init
from mrcnn_jax.object_store import AnyPath, any_path
from mrcnn_jax.types import Batch, Detections, Proposals, empty_batch


@dataclass(frozen=True)
class Result:
    """The detections of one image, best score first, in pixels of the image as it was given."""

    boxes: np.ndarray  # float32 [d, 4] xyxy
    scores: np.ndarray  # float32 [d]
    labels: np.ndarray  # int [d], index into `Model.classes`, 0..K-1
    category_ids: np.ndarray  # int [d], the data set's own ids
    masks: np.ndarray | None = None  # bool [d, h, w]
    keypoints: np.ndarray | None = None  # float32 [d, j, 3]


@dataclass
class Model:
    """A detector: `init`, `losses` and `detect` are pure functions of (params, ...); `predict` uses its own `params`.

    `params` everywhere means all variables of the network: {"params": trained, "batch_stats": buffers}.
    """

    config: ConfigDict
    categories: tuple[Category, ...]
    params: dict | None = None
    # How many of the proposals that it is given a model without an RPN looks at, best first.
    num_proposals: int = 1000
    _detectors: dict = field(default_factory=dict, repr=False)

    @cached_property
    def network(self):
        """The Flax module."""
        return build(self.config)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of `Result.labels`."""
        return tuple(category.name for category in self.categories)

    def init(self, key: Array) -> dict:
        """Random parameters."""
        return init(self.network, key)

    def losses(self, params: dict, batch: Batch, key: Array | None):
        """`RCNN.losses`: the loss terms and what is worth watching, each {name: (total, weight)}."""
        return self.network.apply(params, batch, key, method="losses")

    def detect(self, params: dict, batch: Batch) -> Detections:
        """`RCNN.detect`: detections in pixels of the padded images."""
        detections: Any = self.network.apply(params, batch, method="detect")
        return detections

    def predict(
        self,
        images: Sequence[np.ndarray | str | Path],
        proposals: Sequence[np.ndarray | tuple[np.ndarray, np.ndarray]] | None = None,
        min_size: int | None = None,
        max_size: int | None = None,
        score_threshold: float | None = None,
        batch_size: int = 4,
    ) -> list[Result]:
        """Detect in uint8 RGB arrays or image files of any sizes; one `Result` an image, in the order given.

        Images are resized as the weights expect, sorted into a landscape and a portrait shape, and run `batch_size` at
        a time: two compilations, or four where single images are asked for too, however many sizes there are.

        Args:
            images: all are decoded before the first is run, so they have to fit into memory.
            proposals: for a model without an RPN, and for no other: of each image, boxes [n 4] as xyxy in pixels of the
                image as it is given, best first, or boxes and scores [n]. The best `num_proposals` are used.
            min_size: pixels of the short side after the resize; by default that of the weights. Every other size (and
                `max_size`) makes its own compilations.
            max_size: to how many pixels the long side is limited, at the cost of the short one.
            score_threshold: the lowest score of what is returned; by default all that the model reports, which starts
                at `config.box.score_threshold`.
            batch_size: images at a time; a shape that has but one image is run alone.

        Raises:
            UserError: the model has no weights, a file cannot be read, an array is not uint8 RGB, a size is not
                positive, or proposals are missing, of another number than the images, of another shape or not wanted.
        """
        if self.params is None:
            raise UserError("this model has no weights: use mrcnn_jax.load(path), or set model.params")
        given = self._given(proposals, len(images))
        for name, value in (("min_size", min_size), ("max_size", max_size), ("batch_size", batch_size)):
            _require_positive(name, value)
        short = min_size or self.config.preprocess.short_side
        long = max_size or self.config.preprocess.max_size
        arrays = [_array(image, i) for i, image in enumerate(images)]
        shapes = [_bucket(array.shape, short, long, self.config.preprocess) for array in arrays]
        results: dict[int, Result] = {}
        for shape in sorted(set(shapes)):
            members = [i for i, s in enumerate(shapes) if s == shape]
            num_rows = 1 if len(members) == 1 else batch_size
            for start in range(0, len(members), num_rows):
                chunk = members[start : start + num_rows]
                own = None if given is None else [given[i] for i in chunk]
                batch = self._batch([arrays[i] for i in chunk], own, num_rows, shape, short, long)
                found = jax.device_get(self._detector(batch.image.shape)(self.params, batch))
                for row, i in enumerate(chunk):
                    one, size = jax.tree.map(lambda x, row=row: x[row], found), batch.size[row].tolist()
                    results[i] = self._result(one, size, arrays[i].shape[:2], score_threshold)
        return [results[i] for i in range(len(arrays))]

    def _given(self, proposals: Sequence | None, num_images: int) -> list[Proposals] | None:
        """The proposals of each image in pixels of the image as it was given, best first."""
        if self.config.rpn is not None:
            if proposals is not None:
                raise UserError("this model finds its own proposals: leave `proposals` out")
            return None
        if proposals is None:
            raise UserError("this model finds no proposals of its own: pass `proposals`, boxes for each image")
        if len(proposals) != num_images:
            raise UserError(
                f"proposals has {len(proposals)} entries for {num_images} images: give boxes for each image"
            )
        found = []
        for i, given in enumerate(proposals):
            boxes, scores = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
            try:
                found.append(best_first(boxes, scores))
            except ValueError as error:
                raise UserError(f"proposals[{i}] has {error}: give boxes (n, 4), or (boxes, scores)") from error
        return found

    def _batch(
        self,
        arrays: list[np.ndarray],
        proposals: list[Proposals] | None,
        batch_size: int,
        shape: tuple[int, int],
        short: int,
        long: int,
    ) -> Batch:
        rules = self.config.preprocess
        batch = empty_batch(batch_size, shape, "float32" if rules.interpolation == "torchvision" else "uint8")
        found = [no_proposals(self.num_proposals)] * batch_size
        for row, array in enumerate(arrays):
            height, width = resized_shape(*array.shape[:2], short, long, rules.rounding)
            batch.image[row, :height, :width] = resize(array, (height, width), rules.interpolation)
            batch.size[row], batch.original_size[row], batch.valid[row] = (height, width), array.shape[:2], True
            if proposals is not None:
                ratio = np.array([width / array.shape[1], height / array.shape[0]] * 2, np.float32)
                moved = proposals[row].replace(boxes=proposals[row].boxes * ratio)
                found[row] = fit_proposals(moved, (height, width), self.num_proposals)
        return batch if proposals is None else batch.replace(proposals=stack(found))

    def _detector(self, shape: tuple[int, ...]):
        return self._detectors.setdefault(shape, jax.jit(self.detect))

    def _result(self, detections: Detections, size, original, score_threshold: float | None) -> Result:
        found = to_image(detections, size, original, paste_rule=rule_of(self.config))
        # Logits of an RPN alone and margins of SVMs may be negative.
        keep = found.scores >= (-np.inf if score_threshold is None else score_threshold)
        labels = found.classes[keep] - 1
        ids = np.array([category.id for category in self.categories], np.int64)[labels]
        return Result(found.boxes[keep], found.scores[keep], labels, ids, *_rows(keep, found.masks, found.keypoints))


def create(name: str, num_classes: int, **overrides: Any) -> Model:
    """A named architecture without weights; `overrides` maps dotted config keys to values, e.g. {"box.beta": 0.5}.

    Raises `UserError` for a name, a key or a type of value that does not exist, and where there is no class.
    """
    _require_positive("num_classes", num_classes)
    config = architectures.named(name)
    config.num_classes = num_classes
    for key, value in overrides.items():
        override(config, key, value)
    return Model(config, tuple(Category(i + 1, f"class {i + 1}") for i in range(num_classes)))


def load(path: str | AnyPath, overrides: dict[str, Any] | None = None) -> Model:
    """The model in a run's folder, a checkpoint or somebody else's file, with its classes and preprocessing.

    Folders may be in Google Cloud Storage (gs://BUCKET/FOLDER). Files are those of torchvision and Detectron2 (.pth,
    .pkl, .safetensors), whose architecture is recognised.
    `overrides` maps dotted keys of the model config to values, e.g. {"box.score_threshold": 0.5}. Raises `UserError`
    where there is no checkpoint or file of weights, or for a key or a type of value that does not exist.
    """
    path, overrides = any_path(path), overrides or {}
    if isinstance(path, Path) and path.is_file():
        weights = import_weights(path, overrides=overrides)
        return Model(weights.config, weights.categories, jax.tree.map(jnp.asarray, weights.variables()))
    params, batch_stats, metadata = load_params(path)
    experiment = config_from_dict(metadata["config"])
    config = experiment.model
    for key, value in overrides.items():
        override(config, key, value)
    variables = jax.tree.map(jnp.asarray, {"params": params, "batch_stats": batch_stats})
    data: Any = experiment.get("data", {})
    _, num_proposals = data.get("num_proposals", (None, Model.num_proposals))
    return Model(config, categories_from(metadata), variables, num_proposals)


def _require_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UserError(f"{name}={value}: give 1 or more")


def _array(image: np.ndarray | str | Path, index: int) -> np.ndarray:
    if isinstance(image, (str, Path)):
        return image_files.decode(Path(image))
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(
            f"images[{index}] is {image.dtype} {image.shape}: give uint8 RGB of shape (height, width, 3), or a path"
        )
    return image


def _bucket(shape: tuple[int, ...], short: int, long: int, rules: ConfigDict) -> tuple[int, int]:
    """The landscape or portrait shape into which an image of `shape` fits after the resize."""
    low, high = (-(-side // 32) * 32 for side in (min(short, long), long))
    height, width = resized_shape(shape[0], shape[1], short, long, rules.rounding)
    return (low, high) if height <= width else (high, low)


def _rows(keep: np.ndarray, *arrays: np.ndarray | None) -> list[np.ndarray | None]:
    return [None if array is None else array[keep] for array in arrays]
