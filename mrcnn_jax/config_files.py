"""Experiment files: `experiments/x.py[:mode]` and the overrides that follow it on the command line."""

import ast
import difflib
import importlib.util
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from mrcnn_jax.errors import UserError


def load_config(source: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The locked config of an experiment.

    Args:
        source: path of a Python file that defines `get_config(mode: str) -> ConfigDict`, then `:mode` if a mode other
            than '' is wanted. A path that does not exist here is looked for beside the package, where `experiments/`
            is installed.
        overrides: `a.b=value` each. Keys must exist, and a value has the type of what it replaces; `None` fits wherever
            no text is expected.

    Raises:
        UserError: names the file, key or value, and what would be right.
    """
    path, mode = _split(source)
    module = _import(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} is no experiment: it defines no get_config(mode)")
    try:
        config = module.get_config(mode)
    except Exception as error:
        raise UserError(f"{source}: {_where(error, path)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned {type(config).__name__}, not a ConfigDict")
    config.unlock()
    for assignment in overrides:
        _apply(config, assignment)
    # Weights to start from bring a model config along, which leaves these alone.
    keys = [assignment.partition("=")[0] for assignment in overrides]
    config.model_overrides = tuple(key.removeprefix("model.") for key in keys if key.startswith("model."))
    return config.lock()


def override(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key to a value of the type that it has; `None` fits wherever no text is expected.

    Raises:
        UserError: there is no such key, or the value has another type.
    """
    node, name = _locate(config, key)
    old = node[name]
    if old is not None and not (value is None and not isinstance(old, str)):
        fitted = _fit(value, old)
        if fitted is None:
            raise _misfit(key, repr(value), old)
        value = fitted
    node[name] = value


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as keys and values for `override`. Raises `UserError` for one without a value."""
    values = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--model.{key} has no value: write --model.{key}=VALUE")
        values[key] = _literal(text)
    return values


def _split(source: str) -> tuple[Path, str]:
    name, _, mode = source.partition(":")
    path = Path(name).expanduser()
    installed = Path(__file__).parent.parent / name
    if not path.is_file() and installed.is_file():
        return installed, mode
    if path.is_file():
        return path, mode
    folder = path.parent if path.parent.is_dir() else installed.parent
    others = sorted(file.name for file in folder.glob("*.py")) if folder.is_dir() else []
    raise UserError(f"--config={source}: there is no file {name}{_did_you_mean(path.name, others)}")


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file: an experiment is a .py file that defines get_config(mode)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    # The file is the user's own code, which can raise anything.
    except Exception as error:
        raise UserError(_where(error, path)) from error
    return module


def _where(error: Exception, path: Path) -> str:
    """What the file raised and, unless it raised it on purpose, in which line."""
    if isinstance(error, ValueError | UserError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f"{path}:{lines[-1]}: {type(error).__name__}: {error}" if lines else f"{type(error).__name__}: {error}"


def _apply(config: ConfigDict, assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals:
        raise UserError(f"--config.{key} has no value: write --config.{key}=VALUE")
    node, name = _locate(config, key)
    node[name] = _parse(key, text, node[name])


def _locate(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """The group in which a dotted key is, and its name there."""
    *groups, name = key.split(".")
    node: Any = config
    for depth, group in enumerate([*groups, name]):
        if not isinstance(node, ConfigDict) or group not in node:
            known = list(_keys(config))
            raise UserError(f"there is no config.{key}{_did_you_mean(key, known)}")
        if depth < len(groups):
            node = node[group]
    if isinstance(node[name], ConfigDict):
        inside = ", ".join(f"config.{key}.{child}" for child in list(node[name])[:4])
        raise UserError(f"config.{key} is a group: set one of its keys, such as {inside}")
    return node, name


def _keys(config: ConfigDict, prefix: str = "") -> Iterable[str]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    # `learning_rate` for `optimizer.learning_rate`: the last part alone may be what was meant.
    close = close or [name for name in known if name.rpartition(".")[2] == word.rpartition(".")[2]]
    return f": did you mean {close[0]}?" if close else (f": choose one of {', '.join(known)}" if known else "")


def _parse(key: str, text: str, old: Any) -> Any:
    """`text` as a value of the type that `old` has."""
    if isinstance(old, str):
        return text
    value = _literal(text)
    if old is None or value is None:
        return value
    fitted = _fit(value, old)
    if fitted is None:
        raise _misfit(key, text, old)
    return fitted


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _misfit(key: str, text: str, old: Any) -> UserError:
    example = f"such as {old}" if old != () else "such as (1,2)"
    return UserError(f"config.{key}={text} is not {_NOUNS[type(old)]}, {example}")


_NOUNS = {
    str: "a text", bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple", list: "a list",
}  # fmt: skip


def _fit(value: Any, old: Any) -> Any:
    """`value` in the type of `old`, or None if it has another one."""
    if isinstance(old, bool) or isinstance(value, bool):
        return value if type(value) is type(old) else None
    if isinstance(old, float):
        return float(value) if isinstance(value, int | float) else None
    if isinstance(old, tuple | list):
        if not isinstance(value, tuple | list):
            return None
        # One item of the old value stands for all: a tuple of numbers stays one, of pairs too.
        items = [_fit(item, old[0]) if len(old) else item for item in value]
        return None if None in items else type(old)(items)
    return value if isinstance(value, type(old)) else None
