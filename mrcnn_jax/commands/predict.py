"""`mrcnn predict`."""

from pathlib import Path

import numpy as np

from mrcnn_jax.data.images import SUFFIXES, decode
from mrcnn_jax.data.proposals import ProposalFile, read_proposals
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.paste import encode_window
from mrcnn_jax.evaluation.results import write_json
from mrcnn_jax.model import Result, load
from mrcnn_jax.object_store import AnyPath
from mrcnn_jax.progress import Progress
from mrcnn_jax.visualize import draw, save

# Images that are in memory at one time.
_CHUNK = 16
# Failures that are told in full.
_TOLD = 10


def run(
    checkpoint: AnyPath, images: list[str], out: Path, threshold: float | None, proposals: Path | None = None
) -> None:
    """Detect in image files and folders: an overlay of each in `out`, and `predictions.json` with all of them.

    `threshold` is the lowest score that is drawn, by default 0.5, or 0 where it is the margin of an SVM;
    predictions.json holds all that the model reports, in COCO's form, with `file_name` beside `image_id`, which counts
    the images from 1.

    A model without an RPN needs `proposals`, a file as Detectron2 reads it. An image's entry there is the one whose id
    is the image's name without its ending; as numbers, where both are, so that 139 is that of 000000000139.jpg.

    Raises:
        UserError: there is no such checkpoint; `out` cannot be written; the proposals cannot be read, or not matched;
            or, after all others were done, an image cannot be read or a folder has none.
    """
    model = load(checkpoint)
    if threshold is None:
        threshold = 0.0 if model.config.box is not None and model.config.box.score == "margin" else 0.5
    paths, failures = _files(images)
    given = None if proposals is None else _match(read_proposals(proposals), paths)
    num_named = len(paths) + len(failures)
    names = _distinct_names(paths)
    skeleton = next((category.skeleton for category in model.categories if category.skeleton), ())
    entries, num_done = [], 0
    with Progress("predict", len(paths)) as progress:
        for start in range(0, len(paths), _CHUNK):
            readable = []
            for number in range(start, min(start + _CHUNK, len(paths))):
                try:
                    readable.append((number, decode(paths[number])))
                except UserError as error:
                    failures.append(str(error))
            own = None if given is None else [given[number] for number, _ in readable]
            results = model.predict([image for _, image in readable], own)
            for (number, image), result in zip(readable, results, strict=True):
                save(draw(image, result, model.classes, threshold=threshold, skeleton=skeleton), out / names[number])
                entries += _coco(result, number + 1, paths[number].name, image.shape[:2])
            num_done += len(readable)
            progress.update(min(start + _CHUNK, len(paths)))
    write_json(entries, out / "predictions.json")
    print(f"{num_done} images, {len(entries)} detections: see {out}")
    if failures:
        shown = "; ".join(failures[:_TOLD]) + (f"; and {len(failures) - _TOLD} more" if len(failures) > _TOLD else "")
        raise UserError(f"{len(failures)} of {num_named} images and folders could not be read: {shown}")


def _files(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """The files named, and the images directly in the folders named, in order; and what is wrong with folders."""
    paths: list[Path] = []
    failures: list[str] = []
    for argument in map(Path, arguments):
        if argument.is_dir():
            found = sorted(path for path in argument.iterdir() if path.suffix.lower() in SUFFIXES)
            if not found:
                failures.append(f"{argument}: no image in this folder ({', '.join(SUFFIXES)}); name another, or files")
            paths += found
        else:
            paths.append(argument)
    return paths, failures


def _match(found: ProposalFile, paths: list[Path]) -> list[tuple]:
    """Boxes and scores for each image. Raises `UserError` where one has none, or two have the same name."""
    by_name = {_key(str(identity)): identity for identity in found}
    names = [_key(path.stem) for path in paths]
    if len(by_name) < len(found) or len(set(names)) < len(names):
        twice = "images are" if len(set(names)) < len(names) else "ids of it are"
        raise UserError(f"{found.path}: proposals go to images by name, and two {twice} called the same: rename one")
    if missing := [str(path) for path, name in zip(paths, names, strict=True) if name not in by_name]:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UserError(
            f"{found.path} has no proposals for {len(missing)} of {len(paths)} images ({shown}): its ids have to be "
            "the images' names without their ending"
        )
    return [(found[by_name[name]].boxes, found[by_name[name]].scores) for name in names]


def _key(name: str) -> str:
    return name.lstrip("0") or "0" if name.isdecimal() else name


def _distinct_names(paths: list[Path]) -> list[str]:
    """One PNG name an image; equal stems from different folders are numbered."""
    stems = [path.stem for path in paths]
    return [f"{stem}.png" if stems.count(stem) == 1 else f"{stem}-{i + 1}.png" for i, stem in enumerate(stems)]


def _coco(result: Result, image_id: int, file_name: str, size: tuple[int, ...]) -> list[dict]:
    entries = []
    for i, (x1, y1, x2, y2) in enumerate(result.boxes.astype(np.float64).tolist()):
        entry = {
            "image_id": image_id,
            "file_name": file_name,
            "category_id": int(result.category_ids[i]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(result.scores[i]),
        }
        if result.masks is not None:
            entry["segmentation"] = encode_window(result.masks[i], 0, 0, *size)
        if result.keypoints is not None:
            # COCO's keypoints are indices of pixels, in whose middle the point lies.
            entry["keypoints"] = (result.keypoints[i] - np.array([0.5, 0.5, 0])).reshape(-1).tolist()
        entries.append(entry)
    return entries
