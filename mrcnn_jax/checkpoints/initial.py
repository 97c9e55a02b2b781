"""The variables that training starts from: random, from a checkpoint, or a backbone trained on ImageNet."""

import re
import zipfile
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mrcnn_jax.checkpoints.state import load_params
from mrcnn_jax.errors import UserError
from mrcnn_jax.model import empty_batch
from mrcnn_jax.models.rcnn import RCNN

_NO_WEIGHTS = (
    "warning: random weights, and norms that do nothing (config.model.backbone.norm=frozen_bn): a deep network then "
    "seldom trains. Name weights with config.train.init, or set config.model.backbone.norm to gn or bn"
)
_TORCHVISION = re.compile(r"(fc|conv1|layer[1-4]\.\d+\.(conv[1-3]|downsample(\.0)?))\.(weight|bias)")
_STAGES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}


def initial_variables(model: RCNN, config: ConfigDict) -> tuple[dict, list[str]]:
    """Variables to start from and a report, a line each.

    `config.train.init` is empty, a checkpoint of this package (arrays whose name and shape fit are taken; a head for
    other classes stays random), or an `.npz` with a ResNet under torchvision's names, BatchNorm folded into weight and
    bias. Raises `UserError` where nothing in the file fits.
    """
    init = jax.jit(lambda key: model.init(key, empty_batch(1, (64, 64)), method="touch"))
    # This generator compiles in a quarter of the time of the default one: dozens of arrays are drawn.
    variables = jax.device_get(init(jax.random.key(config.seed, impl="unsafe_rbg")))
    if not config.train.init:
        return variables, [_NO_WEIGHTS] if config.model.backbone.norm == "frozen_bn" else []
    path = Path(config.train.init).expanduser()
    if not path.exists():
        raise UserError(
            f"config.train.init={config.train.init} does not exist: give a checkpoint or an .npz, or leave it empty"
        )
    found = _folded_resnet(path) if path.suffix == ".npz" else _checkpoint(path)
    return _fill(variables, found, path)


def _fill(variables: dict, found: dict[str, np.ndarray], path: Path) -> tuple[dict, list[str]]:
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables)
    names = ["/".join(p.key for p in keys) for keys, _ in leaves]
    fits = [name in found and found[name].shape == leaf.shape for name, (_, leaf) in zip(names, leaves, strict=True)]
    if not any(fits):
        raise UserError(f"{path} holds nothing that fits this model: its first array is {next(iter(found), 'absent')}")
    values = [
        found[name].astype(leaf.dtype) if fit else leaf
        for name, (_, leaf), fit in zip(names, leaves, fits, strict=True)
    ]
    other_shape = [name for name, fit in zip(names, fits, strict=True) if not fit and name in found]
    random = [name for name in names if name not in found]
    unused = [name for name in found if name not in set(names)]
    lines = [f"{path}: {sum(fits)} of {len(names)} arrays loaded"]
    for what, some in (
        ("left at initialisation, other shape", other_shape),
        ("left at initialisation", random),
        ("not used", unused),
    ):
        if some:
            lines.append(f"  {what}: {len(some)} ({', '.join(some[:4])}{', ...' if len(some) > 4 else ''})")
    return jax.tree_util.tree_unflatten(tree, values), lines


def _checkpoint(path: Path) -> dict[str, np.ndarray]:
    params, batch_stats, _ = load_params(path)
    leaves = jax.tree_util.tree_leaves_with_path({"params": params, "batch_stats": batch_stats})
    return {"/".join(p.key for p in keys): np.asarray(leaf) for keys, leaf in leaves}


def _folded_resnet(path: Path) -> dict[str, np.ndarray]:
    """torchvision names to ours. A folded bias becomes the bias of a frozen norm that is otherwise the identity."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an .npz of arrays, or is damaged ({error}): fetch it again") from error
    found: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        if not _TORCHVISION.fullmatch(name):
            raise UserError(f"{path}: '{name}' is no array of a ResNet as torchvision names them, its norms folded in")
        module, kind = name.rsplit(".", 1)
        if module == "fc":
            continue
        if module == "conv1":
            conv, norm = "stem/conv1", "stem/norm"
        else:
            layer, block, *rest = module.split(".")
            where = f"{_STAGES[layer]}_{block}"
            conv = f"{where}/shortcut" if rest[0] == "downsample" else f"{where}/{rest[0]}"
            norm = f"{where}/shortcut_norm" if rest[0] == "downsample" else f"{where}/{rest[0].replace('conv', 'norm')}"
        if kind == "weight":
            if value.ndim != 4:
                raise UserError(f"{path}: '{name}' has shape {value.shape}, where a convolution's weight has four axes")
            found[f"params/backbone/{conv}/kernel"] = value.transpose(2, 3, 1, 0)
        else:
            found[f"batch_stats/backbone/{norm}/bias"] = value
    return found
