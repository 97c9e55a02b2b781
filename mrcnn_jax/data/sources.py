"""From `config.data` to the data sets that it names."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mrcnn_jax.data import coco, proposals, shapes, tfds_builders
from mrcnn_jax.data.dataset import Category, Dataset
from mrcnn_jax.errors import UserError


def load(config: ConfigDict, split: str, categories: Sequence[Category] | None = None) -> tuple[Dataset, list[str]]:
    """The 'train' or 'val' data set of `config.data`, and what its reader has to tell, a line each.

    `categories` are those of the training set: a validation file's are matched to them by name. For a model without an
    RPN each record has proposals: those of the file that the config names or, without one, drawn for drawn shapes.

    Raises:
        UserError: names the config key where data or proposals are not there, or proposals would not be used.
    """
    name = f"config.data.{split}_proposals"
    path, has_rpn = config.data.get(f"{split}_proposals"), config.model.get("rpn") is not None
    if path and has_rpn:
        raise UserError(f"{name}={path} would not be used, since the model has an RPN: leave it empty")
    if not path and not has_rpn and config.data.kind != "shapes":
        raise UserError(f"the model has no RPN (config.model.rpn=None): name a file of proposals with --{name}=FILE")
    dataset, lines = annotated(config, split, categories)
    if path:
        found = proposals.read_proposals(Path(config.data.root).expanduser() / path)
        dataset, more = proposals.attach_file(dataset, found)
        return dataset, [*lines, *more]
    return dataset if has_rpn else proposals.attach_drawn(dataset, config.seed), lines


def annotated(
    config: ConfigDict, split: str, categories: Sequence[Category] | None = None
) -> tuple[Dataset, list[str]]:
    """As `load`, but without proposals, whatever the model needs."""
    data = config.data
    if data.kind == "shapes":
        count = data.num_train if split == "train" else data.num_val
        look = {name: data[name] for name in ("min_visible", "contrast", "clutter")}
        look |= {"size": tuple(data.size), "scale": tuple(data.scale), "max_objects": data.drawn_objects}
        look["num_classes"] = data.drawn_classes
        return shapes.load(split, count, seed=config.seed, **look), []
    if data.kind not in ("coco", "tfds"):
        raise UserError(f"config.data.kind='{data.kind}' is not known: use 'coco', 'tfds' or 'shapes'")
    if data.kind == "tfds":
        return tfds_builders.load(_root(config), split), []
    dataset, report = coco.load(*coco_paths(config, split), categories)
    return dataset, report.lines()


def coco_paths(config: ConfigDict, split: str) -> tuple[Path, Path]:
    """The images' folder and the annotation file of a split.

    As `config.data` names them, or looked for under its root.
    """
    root, images, annotations = _root(config), config.data[f"{split}_images"], config.data[f"{split}_annotations"]
    return (root / images, root / annotations) if annotations else coco.find(root, split)


def _root(config: ConfigDict) -> Path:
    if not config.data.root:
        raise UserError(
            "config.data.root is empty: pass --config.data.root=DIR, the folder of the images and annotations"
        )
    root = Path(config.data.root).expanduser()
    if not root.is_dir():
        raise UserError(f"config.data.root={config.data.root} is not a folder: pass --config.data.root=DIR")
    return root
