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

import itertools
import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple, SupportsFloat

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from mrcnn_jax.checkpoints import checksums
from mrcnn_jax.checkpoints.folders import FOLDER, first_line, newest_metadata, saved_checksums, told_to_the_user
from mrcnn_jax.checkpoints.metadata import require_same_experiment, write
from mrcnn_jax.errors import UserError
from mrcnn_jax.hosts import together
from mrcnn_jax.object_store import AnyPath, absolute, rename


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
        with told_to_the_user(self._workdir):
            self._workdir.mkdir(parents=True, exist_ok=True)
            if together.first():
                write(self._workdir / "metadata.json", self._metadata)
                _mend_figures(self._workdir / FOLDER)
            # Before any host looks at them.
            together.share(None)
            self._manager = _manager(self._workdir / FOLDER, keep_last, best_metric)

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
        with told_to_the_user(self._workdir):
            self._manager.check_for_errors()
            if step in self._manager.all_steps():
                return
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(dict(data_state)),
                    metadata=ocp.args.JsonSave(self._metadata),
                    checksums=ocp.args.JsonSave(checksums.of_checkpoint(state, self._metadata, dict(data_state))),
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
                restored, failure = None, first_line(error)
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
                f"{self._workdir / FOLDER}: none of the checkpoints {sorted(failures)} can be read "
                f"(step {newest}: {failures[newest]}): restore them from a copy, or choose another --workdir"
            )
        return None

    def close(self) -> None:
        """Waits until the last save is on disk. Raises `UserError` if the disk was full."""
        with told_to_the_user(self._workdir):
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
            checksums.require(found, saved_checksums(self._workdir / FOLDER / str(step)))
        except (OSError, ValueError) as error:
            return first_line(error)
        return None

    def _set_aside(self, failures: Mapping[int, str], taken: int) -> None:
        for step, reason in failures.items():
            folder = self._workdir / FOLDER / str(step)
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
