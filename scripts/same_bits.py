"""Whether two runs ended in the same bits."""

import csv
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp


class Differ(Exception):
    """What of two runs is not the same, in one line."""


def same_arrays(one: Path, other: Path, step: int) -> int:
    """How many arrays two workdirs' checkpoints of a step have: all the same, parameters and optimiser.

    Raises `Differ` where some are not.
    """
    left, right = (_arrays(workdir / "checkpoints" / str(step)) for workdir in (one, other))
    differing = sorted(name for name in left.keys() | right.keys() if _bits(left, name) != _bits(right, name))
    if differing:
        raise Differ(f"{len(differing)} of {len(left)} arrays differ, such as {differing[0]}")
    return len(left)


def same_losses(one: Path, other: Path) -> int:
    """How many steps' losses two workdirs' metrics.csv have: all the same. Raises `Differ` where some are not."""
    left, right = (losses(workdir / "metrics.csv") for workdir in (one, other))
    differing = [step for step in left | right if left.get(step) != right.get(step)]
    if differing:
        raise Differ(f"losses differ, first at step {differing[0]}")
    return len(left)


def losses(file: Path) -> dict[str, str]:
    """The loss of each step in a metrics.csv, to the last digit."""
    with file.open(newline="") as rows:
        return {row["step"]: row["loss"] for row in csv.DictReader(rows) if row["loss"]}


def _bits(arrays: dict[str, np.ndarray], name: str) -> bytes | None:
    return arrays[name].tobytes() if name in arrays else None


def _arrays(step: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path, whatever devices it is from."""
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as reader:
        tree = handler.metadata(step / "state").tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        tree = reader.restore(step / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
