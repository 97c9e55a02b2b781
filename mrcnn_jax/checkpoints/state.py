"""The checkpoints of a run: saved in the background, written whole or not at all, found again after any crash.

    WORKDIR/metadata.json              config, classes and versions of the run, for people
    WORKDIR/checkpoints/1200/state     arrays of the train state
                            /data      where the data iterator stands
                            /metadata  the same as metadata.json, so that a step's folder can be moved and used alone
                            /checksums of every array and of the metadata
                            /metrics   what evaluation gave at this step, if it ran

Orbax writes each step under a temporary name and renames it when all of it is on disk; in an object store, which cannot
rename, a step is there when its `commit_success.txt` is, which is written last.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from mrcnn_jax import disk_space
from mrcnn_jax.checkpoints import checksums
from mrcnn_jax.checkpoints.metadata import config_to_dict, require_same_experiment, write
from mrcnn_jax.errors import UserError
from mrcnn_jax.hosts import together
from mrcnn_jax.object_store import AnyPath, absolute, rename, require

_FOLDER = "checkpoints"


class Restored(NamedTuple):
    """A train state read back, and where its data iterator stood."""

    state: Any
    data_state: dict[str, Any]
    step: int


class Checkpoints:
    """Saves and restores one run.

    The last `keep_last` checkpoints are kept and, in its own place among them, the one with the highest `best_metric`:
    a second copy under another name would cost disk and a moment in which the two disagree.
    """

    def __init__(
        self, workdir: AnyPath, metadata: Mapping[str, Any], *, keep_last: int = 3, best_metric: str = "box/AP"
    ) -> None:
        """Opens (or makes) the run's folder.

        Args:
            workdir: the run's folder.
            metadata: from `mrcnn_jax.checkpoints.metadata.describe`; saved with every step.
            keep_last: how many of the latest checkpoints to keep, at least 1.
            best_metric: the key of `metrics` (see `save`) whose highest value is kept too.

        Raises:
            UserError: the folder holds checkpoints of another experiment, or cannot be written.
        """
        self._workdir = absolute(workdir)
        # So that whoever reads the folder takes the same for the best.
        self._metadata = dict(metadata) | {"best_metric": best_metric}
        saved = newest_metadata(self._workdir)
        if saved is not None:
            require_same_experiment(workdir, saved, self._metadata)
        with _told_to_the_user(self._workdir):
            self._workdir.mkdir(parents=True, exist_ok=True)
            if together.first():
                write(self._workdir / "metadata.json", self._metadata)
                _mend_figures(self._workdir / _FOLDER)
            # Before any host looks at them.
            together.share(None)
            self._manager = _manager(self._workdir / _FOLDER, keep_last, best_metric)

    def save(
        self, step: int, state: Any, data_state: Mapping[str, Any], metrics: Mapping[str, SupportsFloat] | None = None
    ) -> None:
        """Starts to save; the arrays are copied before this returns, so `state` may be donated right away.

        Args:
            step: number of the step that was completed; a step that is already saved is left as it is.
            state: pytree of arrays.
            data_state: JSON-able.
            metrics: what evaluation gave at this very step, if it ran: evaluate first, then save.

        Raises:
            UserError: the disk is full; also when that befell the save before this one, which ran in the background.
        """
        with _told_to_the_user(self._workdir):
            self._manager.check_for_errors()
            if step in self._manager.all_steps():
                return
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(dict(data_state)),
                    metadata=ocp.args.JsonSave(self._metadata),
                    checksums=ocp.args.JsonSave(_checksums(state, self._metadata, dict(data_state))),
                ),
                metrics={name: float(value) for name, value in (metrics or {}).items()},
            )

    def latest_step(self) -> int | None:
        """The newest step on disk, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the highest `best_metric`; the newest if none was evaluated; None if there is no checkpoint."""
        return self._manager.best_step()

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored | None:
        """Reads a checkpoint back, or returns None where there is none yet.

        Args:
            abstract_state: pytree like the saved one, of arrays or `jax.ShapeDtypeStruct`; a `sharding` on a leaf is
                where that leaf goes, whatever device count it was saved from.
            step: the step to read. By default the newest; if that one cannot be read, the one before it is taken, a
                warning says so, and the unreadable folder is renamed to `STEP.unreadable` to make room for a new save.

        Raises:
            UserError: `step` does not exist, or no checkpoint can be read (nothing is renamed then).
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if step is not None:
            if step not in steps:
                raise UserError(f"{self._workdir} has no checkpoint of step {step}: there are {sorted(steps)}")
            steps = [step]
        failures: dict[int, str] = {}
        for candidate in steps:
            try:
                restored, failure = self._read(candidate, abstract_state), None
            # Whatever half-written or damaged files make Orbax raise; its exceptions have no common class.
            except Exception as error:
                restored, failure = None, _first_line(error)
            # What one host cannot read, none goes on from; and only what all have read can be checked by all.
            failure = _of_any_host(failure) or _of_any_host(self._damage(candidate, restored))
            if failure is not None:
                failures[candidate] = failure
                continue
            self._set_aside(failures, candidate)
            return restored
        if failures:
            newest = max(failures)
            raise UserError(
                f"{self._workdir / _FOLDER}: none of the checkpoints {sorted(failures)} can be read "
                f"(step {newest}: {failures[newest]}): restore them from a copy, or choose another --workdir"
            )
        return None

    def close(self) -> None:
        """Waits until the last save is on disk. Raises `UserError` if the disk was full."""
        with _told_to_the_user(self._workdir):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self, step: int, abstract_state: Any) -> Restored:
        abstract_state = jax.tree.map(ocp.utils.to_shape_dtype_struct, abstract_state)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), data=ocp.args.JsonRestore()),
        )
        return Restored(items["state"], dict(items["data"]), step)

    def _damage(self, step: int, restored: Restored) -> str | None:
        """What is not as it was saved, in words."""
        found = checksums.of_arrays(restored.state) | {"data": checksums.of_text(restored.data_state)}
        try:
            checksums.require(found, _saved_checksums(self._workdir / _FOLDER / str(step)))
        except (OSError, ValueError) as error:
            return _first_line(error)
        return None

    def _set_aside(self, failures: Mapping[int, str], taken: int) -> None:
        for step, reason in failures.items():
            folder = self._workdir / _FOLDER / str(step)
            if together.first():
                rename(folder, _free_name(folder.with_name(f"{step}.unreadable")))
            logging.getLogger(__name__).warning(
                "checkpoint of step %d cannot be read (%s) and is now called %d.unreadable; going on from step %d",
                step, reason, step, taken,
            )  # fmt: skip
        if failures:
            together.share(None)
            self._manager.reload()


def _of_any_host(failure: str | None) -> str | None:
    return together.share(next(filter(None, together.gather(failure)), None))


def load_params(path: str | AnyPath) -> tuple[Any, Any, dict[str, Any]]:
    """Reads what inference needs, without the optimiser, as NumPy arrays.

    Args:
        path: a run's workdir (its best checkpoint is taken, or the newest if none was evaluated), the folder of one
            step, or a folder that `save_params` wrote.

    Returns:
        `(params, batch_stats, metadata)`. The params are the averaged ones where the run kept an average (`ema`).

    Raises:
        UserError: there is no checkpoint, or it cannot be read.
    """
    path = absolute(path)
    require(path)
    folder = _step_folder(path)
    try:
        metadata = _read_metadata(folder)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree
            params = "ema" if tree.get("ema") else "params"
            wanted = {key: tree.get(key) or {} for key in (params, "batch_stats")}
            arrays = reader.restore(
                folder / "state",
                args=ocp.args.PyTreeRestore(
                    item=wanted,
                    restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
                    partial_restore=True,
                ),
            )
        checksums.require(checksums.of_arrays(arrays), _saved_checksums(folder))
    except Exception as error:
        raise UserError(
            f"{folder} cannot be read as a checkpoint ({_first_line(error)}): give another step's folder or a new copy"
        ) from error
    return arrays[params], arrays["batch_stats"], metadata


def newest_metadata(workdir: AnyPath) -> dict[str, Any] | None:
    """The metadata of the newest checkpoint of a run; None where there is none."""
    return _newest_metadata(_steps(workdir / _FOLDER))


def save_params(path: str | AnyPath, params: Any, batch_stats: Any, metadata: Mapping[str, Any]) -> None:
    """Writes a folder that `load_params` reads: a checkpoint without training state.

    Raises:
        UserError: the folder exists already, or the disk is full.
    """
    folder = absolute(path)
    if folder.exists():
        raise UserError(f"{folder} exists already: choose another folder, or delete it")
    state = {"params": params, "batch_stats": batch_stats}
    with _told_to_the_user(folder), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(
            folder,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                metadata=ocp.args.JsonSave(dict(metadata)),
                checksums=ocp.args.JsonSave(_checksums(state, metadata, {})),
            ),
        )


def digest(variables: Any, model: ConfigDict) -> str:
    """A short text that differs where a model's arrays or its config differ."""
    found = hashlib.blake2b(json.dumps(config_to_dict(model), sort_keys=True).encode(), digest_size=16)
    for leaf in jax.tree.leaves(variables):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def _not_an_orbax_traceback(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


def _manager(folder: AnyPath, keep_last: int, best_metric: str) -> ocp.CheckpointManager:
    # When a save fails, several threads of Orbax log the traceback, and then it is raised too: once is enough.
    logging.getLogger("absl").addFilter(_not_an_orbax_traceback)

    def rank(metrics: Mapping[str, float]) -> float:
        return metrics.get(best_metric, -np.inf)

    best = BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)
    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(n=keep_last), best]),
            best_fn=rank,
            cleanup_tmp_directories=True,
        ),
    )


def _steps(folder: AnyPath) -> list[AnyPath]:
    """The folders of the saved steps, oldest first."""
    if not folder.is_dir():
        return []
    steps = (child for child in folder.iterdir() if child.name.isdecimal() and ocp.utils.is_checkpoint_finalized(child))
    return sorted(steps, key=lambda child: int(child.name))


def _step_folder(path: AnyPath) -> AnyPath:
    """The folder of one step that `path` stands for."""
    if (path / "state").is_dir():
        if not ocp.utils.is_checkpoint_finalized(path):
            raise UserError(
                f"{path} was not saved to its end (it has no commit_success.txt): give another step's folder"
            )
        return path
    steps = _steps(path / _FOLDER) or _steps(path)
    if not steps:
        raise UserError(
            f"{path} holds no checkpoint: give a run's workdir, a folder WORKDIR/{_FOLDER}/STEP, or an exported folder"
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
            return _read_metadata(step)
    return None


def _read_metadata(step_folder: AnyPath) -> dict[str, Any]:
    metadata = json.loads((step_folder / "metadata" / "metadata").read_text())
    checksums.require({"metadata": checksums.of_text(metadata)}, _saved_checksums(step_folder))
    return metadata


def _checksums(state: Any, metadata: Mapping[str, Any], data_state: Mapping[str, Any]) -> dict[str, int]:
    texts = {"metadata": checksums.of_text(metadata), "data": checksums.of_text(data_state)}
    return checksums.of_arrays(state) | texts


def _saved_checksums(step_folder: AnyPath) -> dict[str, int]:
    """Those of a checkpoint; none where a version wrote it that knew none."""
    file = step_folder / "checksums" / "metadata"
    return json.loads(file.read_text()) if file.exists() else {}


def _free_name(path: AnyPath) -> AnyPath:
    """The path, or where there is something already, the same with a number."""
    numbers = itertools.count(2)
    free = path
    while free.exists():
        free = path.with_name(f"{path.name}-{next(numbers)}")
    return free


def _mend_figures(folder: AnyPath) -> None:
    """Empties figures that cannot be read any more, at which Orbax would stop: the arrays may be well."""
    for file in folder.glob("*/metrics/metrics"):
        try:
            json.loads(file.read_text())
        except ValueError:
            logging.getLogger(__name__).warning("%s is damaged: this checkpoint's figures are forgotten", file)
            file.write_text("{}")


@contextmanager
def _told_to_the_user(folder: AnyPath) -> Iterator[None]:
    """Turns the failures that a user can mend into a `UserError`."""
    try:
        yield
    except Exception as error:
        if disk_space.is_full(error):
            raise UserError(
                f"{folder}: the disk is full; earlier checkpoints are intact: free some space and run the same command"
            ) from error
        if isinstance(error, OSError):
            raise UserError(f"{folder} cannot be written ({_first_line(error)}): choose another folder") from error
        if not isinstance(folder, Path):
            # What a network and a store raise has no common class.
            raise UserError(f"{folder} cannot be written ({_first_line(error)}): run the command again") from error
        raise


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
