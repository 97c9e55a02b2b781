"""What a checkpoint says about itself: config, classes and versions, as JSON that a person can read."""

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from ml_collections import ConfigDict

from mrcnn_jax import __version__
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.errors import UserError
from mrcnn_jax.object_store import AnyPath

# Under this key a safetensors file has what `describe` says, as text.
SAFETENSORS_KEY = "mrcnn_jax"
# A run may be resumed with other values of these: where its data lies, how long it goes on, what is reported and kept.
MAY_CHANGE = (
    "data.root",
    "data.num_workers",
    "eval.",
    "train.steps",
    "train.log_every",
    "train.log_images",
    "train.stall_minutes",
    "train.shard_optimizer",
    "train.eval_every",
    "train.save_every",
    "train.keep",
    "train.cpu_devices",
    "model.backbone.remat",
    "model_overrides",
    # What is fitted to the trained network.
    "svm.",
)


def config_to_dict(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The config as JSON-able values; tuples become JSON's arrays."""
    return {key: _to_json(value) for key, value in config.items()}


def config_from_dict(values: Mapping[str, Any]) -> ConfigDict:
    """The inverse of `config_to_dict`. An array comes back as a tuple: our configs hold tuples, never lists."""
    return ConfigDict(_from_json(values))


def describe(config: ConfigDict, categories: Iterable[Category]) -> dict[str, Any]:
    """The metadata of a run: all that turns its arrays into detections of named classes.

    Args:
        config: the run's whole config; `config.model` holds the preprocessing that the weights expect.
        categories: one of each class, in the order of the class indices 1..k.
    """
    return {
        "format": 1,
        "config": config_to_dict(config),
        "categories": [
            {
                "id": int(category.id),
                "name": category.name,
                "keypoints": list(category.keypoints),
                "flip": [int(i) for i in category.flip],
                "skeleton": [[int(i) for i in pair] for pair in category.skeleton],
            }
            for category in categories
        ],
        "versions": {"mrcnn_jax": __version__, **{name: version(name) for name in ("jax", "flax", "numpy")}},
    }


def categories_from(metadata: Mapping[str, Any]) -> tuple[Category, ...]:
    """The categories that `describe` was given."""
    return tuple(Category(**_from_json(category)) for category in metadata["categories"])


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The keys in which two configs (as dicts) differ, one a line, leaving out those in `MAY_CHANGE`."""
    old, new = flat(saved), flat(current)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if key.startswith(MAY_CHANGE) or (key in old and key in new and old[key] == new[key]):
            continue
        lines.append(f"config.{key} ({old.get(key, 'absent')} there, {new.get(key, 'absent')} now)")
    return lines


def require_same_experiment(workdir: AnyPath, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises `UserError`, naming the differing keys, unless both metadata describe the same experiment."""
    lines = differences(saved["config"], current["config"])
    if [c["name"] for c in saved["categories"]] != [c["name"] for c in current["categories"]]:
        lines.append(f"classes ({len(saved['categories'])} there, {len(current['categories'])} now, or other names)")
    if lines:
        shown = "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
        raise UserError(
            f"{workdir} holds the checkpoints of another experiment, which differs in {shown}: "
            "choose another --workdir, or set these keys back"
        )


def write(path: AnyPath, metadata: Mapping[str, Any]) -> None:
    """Writes metadata as indented JSON; a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a nested config by their keys as `a.b.c`."""
    return dict(_flatten(config))


def _to_json(value: Any) -> Any:
    if isinstance(value, ConfigDict | Mapping):
        return config_to_dict(value)
    if isinstance(value, tuple | list):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_from_json(item) for item in value)
    return value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
