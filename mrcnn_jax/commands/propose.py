"""`mrcnn propose`: files of region proposals, by selective search or by a trained RPN."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mrcnn_jax import distributed
from mrcnn_jax.checkpoints.metadata import config_to_dict
from mrcnn_jax.checkpoints.params import digest
from mrcnn_jax.data import images, selective_search, sources
from mrcnn_jax.data.dataset import Dataset, Record
from mrcnn_jax.data.proposal_parts import Parts
from mrcnn_jax.data.proposals import write_proposals
from mrcnn_jax.data.report import Report
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.proposer import Proposer, with_num_proposals
from mrcnn_jax.evaluation.recall import proposal_recall
from mrcnn_jax.evaluation.results import write_json
from mrcnn_jax.interruption import Interrupted, Interruption
from mrcnn_jax.model import Model, load
from mrcnn_jax.models.build import build
from mrcnn_jax.object_store import AnyPath
from mrcnn_jax.progress import Progress
from mrcnn_jax.types import Proposals

# What selective search keeps of an image unless told otherwise.
_NUM = 2000
# Failures that are told in full.
_TOLD = 10
# Images that an RPN looks at together where no experiment says so.
_BATCH_SIZE = 8

# Image id and proposals, or why there are none.
_Found = Iterator[tuple[int, Proposals | UserError]]


def run(
    config: ConfigDict | None,
    split: str | None,
    folder: Path | None,
    method: str,
    checkpoint: AnyPath | None,
    out: Path,
    num: int | None,
    workers: int,
    json_path: Path | None,
) -> None:
    """Find proposals for the `split` images of `config`, or for those in `folder`, and write them to `out`.

    `method` is selective_search_fast, selective_search_quality or rpn, which takes the model in `checkpoint`. The ids
    of a folder's images are their names without ending. Up to `num` proposals an image are kept: by default 2,000, or
    as many as the RPN was made for. Where the objects are known, the recall is printed, and written to `json_path`.

    What was found is kept in the folder OUT.parts until all is done; a run that was stopped goes on from there.

    Raises:
        UserError: the data or the model cannot be used; OUT.parts is of a run with other settings; a file cannot be
            written; or, after all others were done, an image cannot be read: then the parts stay.
        Interrupted: a signal came, and the parts are saved.
    """
    dataset, failures = _dataset(config, split, folder)
    num_images = len(dataset.records) + len(failures)
    settings: dict = {"method": method, "num": num or _NUM}
    if config is not None and config.data.kind == "shapes":
        settings["drawn"] = config_to_dict(config.data) | {"seed": config.seed, "split": split}
    model = loading = None
    if method == "rpn":
        model = load(checkpoint or Path())
        _check_rpn(model, checkpoint)
        if num is not None:
            model.config = with_num_proposals(model.config, num)
        loading = _for_rpn(model, config)
        buckets = loading.data.buckets
        settings |= {
            "num": model.config.rpn.post_nms[1],
            "weights": digest(model.params, model.config),
            "buckets": buckets,
        }
    parts = Parts(out, settings)
    keys = {record.image_id: _key(record) for record in dataset.records}
    missing = dataset.subset(i for i, key in enumerate(keys.values()) if key not in parts)
    num_before = len(keys) - len(missing.records)
    if num_before:
        print(f"going on: {num_before:,} of {len(keys):,} images were done before, see {parts.folder}")

    if model is not None:
        found = _by_rpn(model, loading, missing)
    else:
        mode = "quality" if method == "selective_search_quality" else "fast"
        found = selective_search.propose_all(missing.records, mode, settings["num"], workers)
    with Interruption(), Progress("propose", len(keys), num_before) as progress, closing(found):
        try:
            for done, (image_id, proposals) in enumerate(found, start=num_before + 1):
                if isinstance(proposals, UserError):
                    failures.append(str(proposals))
                else:
                    parts.add(keys[image_id], proposals)
                progress.update(done)
        except Interrupted as stop:
            saved = f"stopped, {len(parts):,} images are kept in {parts.folder}: run the same command to go on"
            raise Interrupted(stop.signal, saved) from None
        finally:
            parts.save()
    if failures:
        shown = "; ".join(failures[:_TOLD]) + (f"; and {len(failures) - _TOLD} more" if len(failures) > _TOLD else "")
        raise UserError(
            f"{out} was not written, since {len(failures)} of {num_images} images could not be read: {shown}. What was "
            f"found in the others is kept in {parts.folder}: mend these and run the same command to go on"
        )
    _finish(dataset, {image_id: parts[key] for image_id, key in keys.items()}, folder is None, out, json_path)
    parts.remove()


def _dataset(config: ConfigDict | None, split: str | None, folder: Path | None) -> tuple[Dataset, list[str]]:
    """The images, and what is wrong with some of them."""
    if folder is not None:
        return _of_folder(folder)
    if config is None or split is None:
        raise UserError("nothing to propose for: give --config and --split, or --images")
    dataset, lines = sources.annotated(config, split)
    print("\n".join(lines), end="\n" if lines else "")
    return dataset, []


def _of_folder(folder: Path) -> tuple[Dataset, list[str]]:
    """The images directly in a folder, numbered from 1, without objects; and why some cannot be read."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in images.SUFFIXES)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read as a folder of images ({error.strerror}); check --images") from error
    if not paths:
        raise UserError(f"{folder}: no image in this folder ({', '.join(images.SUFFIXES)}); name another")
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(f"{folder}: proposals go to images by name, and two images are called {twice}: rename one")
    records, failures = [], []
    for number, path in enumerate(paths, start=1):
        try:
            height, width = images.size_of(path)
        except UserError as error:
            failures.append(str(error))
            continue
        nothing, boxes = np.zeros(0, np.float32), np.zeros((0, 4), np.float32)
        records.append(
            Record(number, path, height, width, boxes, nothing.astype(np.int32), nothing.astype(bool), nothing, (),
                   file_name=path.name)
        )  # fmt: skip
    return Dataset((), records, folder.name), failures


def _key(record: Record) -> str:
    """An image in the parts: more than its id, so that those of other images are not taken for its own."""
    name = record.file_name or (record.source.name if isinstance(record.source, Path) else "")
    return f"{record.image_id} {name} {record.width}x{record.height}"


def _check_rpn(model: Model, checkpoint: AnyPath | None) -> None:
    if model.config.rpn is None:
        raise UserError(f"{checkpoint} is a model without an RPN, which finds no proposals: name one with an RPN")


def _for_rpn(model: Model, config: ConfigDict | None) -> ConfigDict:
    """What a loader needs: the experiment's data with the model's own preprocessing."""
    if config is None:
        rules = model.config.preprocess
        low, high = sorted(-(-side // 32) * 32 for side in (rules.short_side, rules.max_size))
        data = {"buckets": ((low, high), (high, low)), "num_workers": 0}
        return ConfigDict({"data": data, "eval": {"batch_size": _BATCH_SIZE}, "model": model.config})
    experiment = config.copy_and_resolve_references().unlock()
    experiment.model = model.config
    return experiment


def _by_rpn(model: Model, config: ConfigDict, dataset: Dataset) -> _Found:
    mesh = distributed.make_mesh()
    propose = Proposer(build(model.config), config, mesh)
    variables = distributed.replicate(model.params, mesh)
    done = set()
    try:
        for image_id, found in propose(variables, dataset):
            done.add(image_id)
            yield image_id, found
    except UserError:
        # A batch is lost to one bad image. They are looked for once, and the loader is given the others.
        bad = _unreadable(dataset)
        if not bad:
            raise
        yield from bad.items()
        rest = (i for i, record in enumerate(dataset.records) if record.image_id not in bad.keys() | done)
        yield from propose(variables, dataset.subset(rest))


def _unreadable(dataset: Dataset) -> dict[int, UserError]:
    def look(record: Record) -> UserError | None:
        try:
            record.image()
        except UserError as error:
            return error

    with ThreadPoolExecutor() as pool:
        errors = pool.map(look, dataset.records)
        return {record.image_id: error for record, error in zip(dataset.records, errors, strict=True) if error}


def _finish(dataset: Dataset, found: dict[int, Proposals], annotated: bool, out: Path, json_path: Path | None) -> None:
    """Writes the files and tells what is in them."""

    def name(record: Record) -> int | str:
        return record.image_id if annotated else Path(record.file_name).stem

    names = {record.image_id: name(record) for record in dataset.records}
    write_proposals(out, {names[image_id]: (one.boxes, one.scores) for image_id, one in found.items()})
    num_proposals = sum(len(one.scores) for one in found.values())
    print(f"{len(found):,} images, {num_proposals:,} proposals: see {out}")
    report = Report()
    if empty := [names[image_id] for image_id, one in found.items() if not len(one.scores)]:
        report.note("image in which nothing was proposed", "image", empty)
    recall = proposal_recall(dataset.to_coco(), found) if annotated else None
    print("\n".join([*report.lines(), *([] if recall is None else [recall.table()])]))
    if json_path is not None:
        counts = {"images": len(found), "proposals": num_proposals, "notes": report.notes}
        write_json(counts | {"recall": None if recall is None else recall.to_dict()}, json_path)
