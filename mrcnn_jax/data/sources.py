"""From `config.data` to the data sets that it names."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mrcnn_jax.data import coco, shapes, tfds_builders
from mrcnn_jax.data.dataset import Category, Dataset
from mrcnn_jax.errors import UserError


def load(config: ConfigDict, split: str, categories: Sequence[Category] | None = None) -> tuple[Dataset, list[str]]:
    """The 'train' or 'val' data set of `config.data`, and what its reader has to tell, a line each.

    `categories` are those of the training set: a validation file's are matched to them by name. Raises `UserError`
    naming the config key where the data are not there.
    """
    data = config.data
    if data.kind == "shapes":
        count = data.num_train if split == "train" else data.num_val
        look = {name: data[name] for name in ("min_visible", "contrast", "clutter")}
        look |= {"size": tuple(data.size), "scale": tuple(data.scale), "max_objects": data.drawn_objects}
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
