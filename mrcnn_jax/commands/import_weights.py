"""`mrcnn import`."""

from pathlib import Path

from ml_collections import ConfigDict

from mrcnn_jax.checkpoints.importing import assumed_classes, import_weights
from mrcnn_jax.checkpoints.metadata import describe
from mrcnn_jax.checkpoints.params import save_params
from mrcnn_jax.config_files import parse_overrides
from mrcnn_jax.data import coco
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.data.published_classes import numbered
from mrcnn_jax.errors import UserError
from mrcnn_jax.models import architectures


def run(
    file: Path, arch: str | None, out: Path, allow_partial: bool, classes: str | None, overrides: list[str]
) -> None:
    """Turn weights of torchvision or Detectron2 into a checkpoint, and say what became of every array.

    Args:
        file: .pth, .pkl, .safetensors or .npz.
        arch: a named architecture; by default it is recognised.
        out: the folder to write; it must not exist.
        allow_partial: whether arrays may be missing or left over.
        classes: names in the order of the outputs, with commas between them, or the COCO JSON that was trained on.
        overrides: `key=value`, keys of the model's config.

    Raises:
        UserError: the file cannot be used, or the folder cannot be written. Nothing is written then.
    """
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out, or delete it")
    model = architectures.named(arch) if arch else None
    changes = parse_overrides(overrides)
    weights = import_weights(
        file, model=model, backbone_of=model, overrides=changes, allow_partial=allow_partial,
        categories=None if classes is None else _categories(classes),
    )  # fmt: skip
    print("\n".join(weights.report))
    variables = weights.variables()
    categories = weights.categories or assumed_classes(weights.config)
    config = ConfigDict({"name": file.stem, "model": weights.config})
    save_params(out, variables["params"], variables["batch_stats"], describe(config, categories))
    if weights.categories is None:
        print(f"saved: {out}. Begin with it: mrcnn train --config=FILE --config.train.init={out} --workdir=DIR")
    else:
        print(f"saved: {out}. See it work: mrcnn predict --checkpoint={out} IMAGE --out=DIR")


def _categories(text: str) -> tuple[Category, ...]:
    if text.lower().endswith(".json"):
        return coco.categories(Path(text))
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"--classes={text}: give every class one name of its own, with commas between them")
    return numbered(names)
