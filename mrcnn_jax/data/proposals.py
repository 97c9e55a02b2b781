"""Regions that come with the data, for models without an RPN (Girshick, "Fast R-CNN", 2015).

A file of them is Detectron2's: the pickle of a dictionary with three lists of equal length, `ids` of images, `boxes`
(arrays [n 4]) and `objectness_logits` (arrays [n]); older ones say `indexes` and `scores`. `bbox_mode` tells how boxes
are written: 0, and without it, xyxy, 1 x, y, width, height. Boxes are in pixels of the image as it was annotated.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_jax.data.dataset import Dataset, Record
from mrcnn_jax.data.report import Report
from mrcnn_jax.errors import UserError
from mrcnn_jax.files import whole_file
from mrcnn_jax.pickles.arrays import CONSTRUCTORS, Array
from mrcnn_jax.pickles.reader import MAX_OPERATIONS, AsksForCode, Name, NotData, read_pickle
from mrcnn_jax.pickles.writer import write_pickle
from mrcnn_jax.types import Proposals

_OLD_NAMES = {"indexes": "ids", "scores": "objectness_logits"}
_BOX_MODE = "detectron2.structures.boxes.BoxMode"
_BOX_MODES = {"XYXY_ABS": 0, "XYWH_ABS": 1, "XYXY_REL": 2, "XYWH_REL": 3, "XYWHA_ABS": 4}

# The domain of random numbers of drawn proposals; how many are near an object, and how many lie anywhere.
_DRAWN = 1000
_NEAR, _ANYWHERE = 8, 40


class ProposalFile(Mapping[int | str, Proposals]):
    """The proposals of each image of a file, best first, by image id.

    Ids are compared as text, as Detectron2 does: 17 and "17" are one image. What was read is held in two arrays.
    """

    def __init__(self, path: Path, images: Mapping[int | str, Proposals]):
        self.path = path
        self._ids = tuple(images)
        self._place = {str(identity): place for place, identity in enumerate(self._ids)}
        self._starts = np.cumsum([0, *(len(found.scores) for found in images.values())])
        self._boxes = np.concatenate([np.zeros((0, 4), np.float32), *(found.boxes for found in images.values())])
        self._scores = np.concatenate([np.zeros(0, np.float32), *(found.scores for found in images.values())])

    def __getitem__(self, identity: int | str) -> Proposals:
        place = self._place[str(identity)]
        own = slice(self._starts[place], self._starts[place + 1])
        return Proposals(self._boxes[own], self._scores[own], np.ones(own.stop - own.start, bool))

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def of(self, record: Record) -> Proposals:
        """The proposals of a record's image."""
        return self[record.image_id]


def read_proposals(path: str | Path) -> ProposalFile:
    """Reads a file of proposals; written by Python 2 or 3 and any NumPy. Nothing in it is run.

    That takes two to three times the file's size of memory, and once its size afterwards, in the worker processes of a
    loader too.

    Raises:
        UserError: the file is missing, damaged or no such pickle; its lists differ in length; an id comes twice; boxes
            are not [n 4], not finite or not in pixels, or scores not one a box.
    """
    path = Path(path)
    try:
        return ProposalFile(path, _read(path))
    except AsksForCode as error:
        raise UserError(
            f"{path} {_line(error)}, and was not run: save lists of NumPy arrays, and no objects"
        ) from error
    except NotData as error:
        raise UserError(f"{path} {_line(error)}: write it as Detectron2 reads it, see `write_proposals`") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read the proposals ({error.strerror or error}); check the path") from error
    except MemoryError as error:
        raise UserError(f"{path}: too large for the memory of this machine; write fewer proposals an image") from error


def write_proposals(path: str | Path, proposals: Mapping[int | str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes a file that `read_proposals` reads and Detectron2 too (`DATASETS.PROPOSAL_FILES_TRAIN`).

    Args:
        path: where to.
        proposals: boxes [n 4], xyxy in pixels of the image, and scores [n], by image id.

    Raises:
        UserError: boxes or scores have another shape or are not finite; or the file cannot be written.
    """
    path, ids, found = Path(path), [], []
    for identity, (boxes, scores) in proposals.items():
        try:
            found.append(best_first(boxes, scores))
        except ValueError as error:
            raise UserError(f"{path} was not written: image id {identity} has {error}") from error
        ids.append(identity if isinstance(identity, str) else int(identity))
    content = {"ids": ids, "boxes": [one.boxes for one in found], "objectness_logits": [one.scores for one in found]}
    with whole_file(path) as partial_path, partial_path.open("wb") as file:
        file.writelines(write_pickle(content))


def best_first(boxes: Any, scores: Any = None) -> Proposals:
    """Proposals of one image from boxes [n 4] and scores [n]; of equal scores, and without any, the first comes first.

    Raises:
        ValueError: what is wrong with them, to be read after "has".
    """
    boxes = np.asarray(boxes)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iuf":
        raise ValueError(f"boxes that are {boxes.dtype} of shape {boxes.shape}, where numbers of shape (n, 4) belong")
    scores = np.arange(len(boxes), 0, -1) if scores is None else np.asarray(scores)
    if scores.shape != (len(boxes),) or scores.dtype.kind not in "iuf":
        raise ValueError(f"{scores.dtype} scores of shape {scores.shape} for {len(boxes)} boxes, where each has one")
    with np.errstate(over="ignore"):
        boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError("a box or a score that is not finite")
    order = np.argsort(-scores, kind="stable")
    return Proposals(boxes[order], scores[order], np.ones(len(order), bool))


def attach_file(dataset: Dataset, found: ProposalFile) -> tuple[Dataset, list[str]]:
    """The data set with the proposals of a file, and what is worth telling, a line each.

    Raises:
        UserError: the file has no entry for some image.
    """
    sizes = {record.image_id: (record.width, record.height) for record in dataset.records}
    ids = list(sizes)
    if missing := [identity for identity in ids if identity not in found]:
        more = ", ..." if len(missing) > 5 else ""
        raise UserError(
            f"{found.path} has no proposals for {len(missing):,} of {len(ids):,} images of {dataset.name!r} (image id "
            f"{', '.join(map(str, missing[:5]))}{more}): name the file of these images, or make proposals for all"
        )
    report, known = Report(), set(map(str, ids))
    if empty := [identity for identity in ids if not len(found[identity].scores)]:
        report.note("image for which there are none", "image", empty)
    over, outside = [], []
    for identity, (width, height) in sizes.items():
        boxes = found[identity].boxes
        inside = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
        if not (inside[:, 2:] > inside[:, :2]).all():
            outside.append(identity)
        # A pixel of rounding is nothing; boxes in pixels of a resized image are.
        if (np.abs(boxes - inside) > 1).any():
            over.append(identity)
    if over:
        report.note("image of which some reach over the border, and are clipped", "image", over)
    if outside:
        report.note("image of which some have no area inside it, and are left out", "image", outside)
    if unused := [identity for identity in found if str(identity) not in known]:
        report.note("image that is not in the data set, left out", "image", unused)
    return attach(dataset, found.of), [f"proposals of {found.path}: {line}" for line in report.lines()]


def attach_drawn(dataset: Dataset, seed: int) -> Dataset:
    """The data set with proposals made of its own ground truth, for trying a model out: figures would be flattered."""
    return attach(dataset, partial(drawn, seed=seed))


def attach(dataset: Dataset, find: Callable[[Record], Proposals]) -> Dataset:
    """The data set with the proposals that `find` gives for a record, once that is read."""
    return dataset.map_records(partial(_attached, find=find))


def drawn(record: Record, seed: int) -> Proposals:
    """Boxes near each object that is no crowd, and boxes anywhere: a pure function of record, seed and image id."""
    rng = np.random.default_rng([_DRAWN, seed, record.image_id])
    extent = np.array([record.width, record.height])
    objects = np.repeat(record.boxes[~record.crowd], _NEAR, axis=0)
    distance = rng.uniform(0, 0.3, (len(objects), 1))
    near = objects + np.tile(objects[:, 2:] - objects[:, :2], 2) * distance * rng.uniform(-1, 1, objects.shape)
    corners = np.sort(rng.random((2, _ANYWHERE, 2)) * extent, axis=0)
    boxes = np.concatenate([near, np.concatenate([corners[0], corners[1]], axis=1)])
    # So that some of those near an object come behind some of the others.
    scores = np.concatenate([1 - distance[:, 0], 0.8 * rng.random(_ANYWHERE)])
    return best_first(np.clip(boxes, 0, np.tile(extent, 2)), scores)


def _attached(record: Record, find: Callable[[Record], Proposals]) -> Record:
    return replace(record, proposals=find(record))


def _read(path: Path) -> dict[int | str, Proposals]:
    data = path.read_bytes()
    # An array takes some twenty operations, and few of them make anything large.
    content, _ = read_pickle(data, _CONSTRUCTORS, max_operations=MAX_OPERATIONS + len(data) // 4)
    del data
    if not isinstance(content, dict):
        raise NotData(f"holds a {type(content).__name__}, where proposals are a dictionary")
    content = {_OLD_NAMES.get(name, name): value for name, value in content.items()}
    ids, boxes, scores = (_items(content, name) for name in ("ids", "boxes", "objectness_logits"))
    if not len(ids) == len(boxes) == len(scores):
        raise NotData(f"has {len(ids)} ids, {len(boxes)} arrays of boxes and {len(scores)} of objectness_logits")
    mode = content.get("bbox_mode", 0)
    if mode not in (0, 1):
        raise NotData(f"has boxes in bbox_mode {mode!r:.40}, where pixels are 0 (XYXY_ABS) or 1 (XYWH_ABS)")
    images: dict[int | str, Proposals] = {}
    seen: set[str] = set()
    for place, identity in enumerate(map(_image_id, ids)):
        if str(identity) in seen:
            raise NotData(f"has image id {identity} twice")
        seen.add(str(identity))
        try:
            found = best_first(_values(boxes[place]), _values(scores[place]))
        except NotData:
            raise
        except ValueError as error:
            raise NotData(f"is of no use: image id {identity} has {error}") from error
        if mode == 1:
            found.boxes[:, 2:] += found.boxes[:, :2]
        images[identity] = found
        # As read they are not needed any more, and there may be gigabytes of them.
        boxes[place] = scores[place] = None
    return images


def _items(content: dict, name: str) -> list:
    if name not in content:
        raise NotData(f"has no '{name}'")
    value = _values(content.pop(name))
    if not isinstance(value, list | tuple | np.ndarray) or (isinstance(value, np.ndarray) and value.ndim == 0):
        raise NotData(f"has '{name}' that are no list")
    return list(value)


def _values(value: Any) -> Any:
    return value.read() if isinstance(value, Array) else value


def _image_id(identity: Any) -> int | str:
    if isinstance(identity, str):
        return identity
    if isinstance(identity, int | np.integer) and not isinstance(identity, bool):
        return int(identity)
    raise NotData(f"has a {type(identity).__name__} as an image id, where ids are whole numbers or text")


def _box_mode(value: Any = 0) -> int:
    if not isinstance(value, int):
        raise NotData("is damaged: a bbox_mode is no number")
    return value


def _member(owner: Any, name: Any) -> int:
    """How Python 3.11 first pickled an enumeration's member."""
    if not isinstance(owner, Name) or str(owner) != _BOX_MODE:
        raise AsksForCode("asks for an attribute, which is not data")
    return _BOX_MODES[name]


def _line(error: Exception) -> str:
    """The message in one line, whatever names the file has."""
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return text if len(text) <= 300 else f"{text[:300]}..."


_CONSTRUCTORS = CONSTRUCTORS | {_BOX_MODE: _box_mode, "builtins.getattr": _member}
