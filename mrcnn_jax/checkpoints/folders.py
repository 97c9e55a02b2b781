"""Where checkpoints lie, what they say of themselves, and what is told where one cannot be read or written."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from mrcnn_jax import disk_space
from mrcnn_jax.checkpoints import checksums
from mrcnn_jax.errors import Unreachable, UserError
from mrcnn_jax.object_store import AnyPath

# Of a run's folder, the one that has a folder for every saved step.
FOLDER = "checkpoints"


def newest_metadata(workdir: AnyPath) -> dict[str, Any] | None:
    """The metadata of the newest checkpoint of a run; None where there is none."""
    return _newest_metadata(steps_in(workdir / FOLDER))


def steps_in(folder: AnyPath) -> list[AnyPath]:
    """The folders of the saved steps, oldest first."""
    if not folder.is_dir():
        return []
    steps = (child for child in folder.iterdir() if child.name.isdecimal() and ocp.utils.is_checkpoint_finalized(child))
    return sorted(steps, key=lambda child: int(child.name))


def step_folder(path: AnyPath) -> AnyPath:
    """The folder of one step that `path` stands for: itself, or the best of those in it, a run or its checkpoints.

    Raises `UserError` where there is none.
    """
    if (path / "state").is_dir():
        if not ocp.utils.is_checkpoint_finalized(path):
            raise UserError(
                f"{path} was not saved to its end (it has no commit_success.txt): give another step's folder"
            )
        return path
    steps = steps_in(path / FOLDER) or steps_in(path)
    if not steps:
        raise UserError(
            f"{path} holds no checkpoint: give a run's workdir, a folder WORKDIR/{FOLDER}/STEP, or an exported folder"
        )

    # Checkpoints of earlier versions do not tell.
    best_metric = (_newest_metadata(steps) or {}).get("best_metric", "box/AP")

    def rank(step: AnyPath) -> tuple[float, int]:
        file = step / "metrics" / "metrics"
        metrics = json.loads(file.read_text()) if file.is_file() else {}
        return metrics.get(best_metric, -np.inf), int(step.name)

    return max(steps, key=rank)


def _newest_metadata(steps: list[AnyPath]) -> dict[str, Any] | None:
    for step in reversed(steps):
        with suppress(OSError, ValueError):
            return read_metadata(step)
    return None


def read_metadata(folder: AnyPath) -> dict[str, Any]:
    """What the checkpoint in a step's folder says of itself. Raises `ValueError` where that is not what was saved."""
    metadata = json.loads((folder / "metadata" / "metadata").read_text())
    checksums.require({"metadata": checksums.of_text(metadata)}, saved_checksums(folder))
    return metadata


def saved_checksums(folder: AnyPath) -> dict[str, int]:
    """Those in a step's folder; none where a version wrote it that knew none."""
    file = folder / "checksums" / "metadata"
    return json.loads(file.read_text()) if file.exists() else {}


@contextmanager
def told_to_the_user(folder: AnyPath) -> Iterator[None]:
    """Turns the failures that a user can mend into a `UserError`."""
    try:
        yield
    except Exception as error:
        if disk_space.is_full(error):
            raise UserError(
                f"{folder}: the disk is full; earlier checkpoints are intact: free some space and run the same command"
            ) from error
        if not isinstance(folder, Path) and not isinstance(error, UserError):
            # What a network and a store raise has no common class.
            raise Unreachable(f"{folder} cannot be written ({first_line(error)}): run the command again") from error
        if isinstance(error, OSError):
            raise UserError(f"{folder} cannot be written ({first_line(error)}): choose another folder") from error
        raise


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
