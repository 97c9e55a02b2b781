"""From `config.data` to the data sets that it names."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from mrcnn_jax.data import cityscapes, coco, proposals, shapes, tfds_builders, voc
from mrcnn_jax.data.dataset import Category, Dataset
from mrcnn_jax.data.report import Report
from mrcnn_jax.errors import UserError


def load(config: ConfigDict, split: str, categories: Sequence[Category] | None = None) -> tuple[Dataset, list[str]]:
    """The 'train' or 'val' data set of `config.data`, and what its reader has to tell, a line each.

    `categories` are those of the training set: a validation file's are matched to them by name. For a model without an
    RPN each record has proposals: those of the file that the config names or, without one, drawn for drawn shapes.
    Training images come without difficult objects, as in Girshick's code, unless `config.data.use_difficult`.

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
    if split == "train" and not config.data.get("use_difficult", False):
        dataset = dataset.without_difficult()
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
    if data.kind == "tfds":
        return tfds_builders.load(_root(config), split), []
    if data.kind == "coco":
        dataset, report = coco.load(*coco_paths(config, split), categories)
    elif data.kind == "voc":
        dataset, report = voc.load(_root(config), voc_sets(config, split), categories)
    elif data.kind == "cityscapes":
        dataset, report = cityscapes.load(_root(config), split, categories)
    else:
        raise UserError(
            f"config.data.kind='{data.kind}' is not known: use 'coco', 'voc', 'cityscapes', 'tfds' or 'shapes'"
        )
    return dataset, report.lines()


def reader(
    config: ConfigDict, split: str, categories: Sequence[Category] | None = None
) -> Callable[[], tuple[Dataset, Report]]:
    """What reads the annotations of a split with all that is wrong with them, for `mrcnn check`.

    Raises:
        UserError: the config does not say where they are, or has data of a kind that has no files to check.
    """
    kind = config.data.kind
    if kind == "coco":
        return partial(coco.read, *coco_paths(config, split), categories)
    if kind == "voc":
        return partial(voc.read, _root(config), voc_sets(config, split), categories)
    raise UserError(
        f"config.data.kind='{kind}' has no files to check: 'coco' has a folder and a JSON, 'voc' folders of VOC's form"
    )


def coco_paths(config: ConfigDict, split: str) -> tuple[Path, Path]:
    """The images' folder and the annotation file of a split.

    As `config.data` names them, or looked for under its root.
    """
    root, images, annotations = _root(config), config.data[f"{split}_images"], config.data[f"{split}_annotations"]
    return (root / images, root / annotations) if annotations else coco.find(root, split)


def voc_sets(config: ConfigDict, split: str) -> str:
    """The image sets of a split, as `config.data` names them or looked for under its root.

    Raises:
        UserError: only the other split's are named, of which those that are looked for might be a part; or a folder of
            images is named, which would not be used.
    """
    named, other = (config.data[f"{name}_annotations"] for name in (split, "val" if split == "train" else "train"))
    if folder := config.data[f"{split}_images"]:
        raise UserError(f"config.data.{split}_images={folder} would not be used: VOC's images are in JPEGImages")
    if other and not named:
        raise UserError(
            f"config.data.{split}_annotations is empty, and the other split's is {other}: name the image sets of both"
        )
    return named or voc.find(_root(config), split)


def _root(config: ConfigDict) -> Path:
    if not config.data.root:
        raise UserError(
            "config.data.root is empty: pass --config.data.root=DIR, the folder of the images and annotations"
        )
    root = Path(config.data.root).expanduser()
    if not root.is_dir():
        raise UserError(f"config.data.root={config.data.root} is not a folder: pass --config.data.root=DIR")
    return root
