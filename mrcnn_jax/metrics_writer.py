"""Metrics over time: `metrics.csv` for people and spreadsheets, event files for TensorBoard. No TensorFlow."""

import csv
import os
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar


class MetricsWriter:
    """Appends to `WORKDIR/metrics.csv` and `WORKDIR/tensorboard/`.

    A row is a step at which something was measured; what was not measured then is an empty cell. A column keeps its
    place for good: new metrics go to the right. Every row is on disk when `write` returns.
    """

    def __init__(self, workdir: Path, step: int = 0, *, enabled: bool = True) -> None:
        """Goes on after `step`: what an earlier process wrote of later steps, before it was stopped, is cut.

        Of several hosts one is `enabled`; what the others write is dropped.
        """
        self._enabled = enabled
        if not enabled:
            return
        (workdir / "tensorboard").mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.csv"
        self._columns, rows = self._read()
        if self._path.exists():
            # Also where nothing is cut: the last line may lack its end.
            self._replace([row for row in rows if int(row["step"]) <= step])
        # tensorboardX's file writer itself, not its SummaryWriter, which writes later from another thread. It names
        # files by the second and overwrites: a resumed run must not land on the name of the one before.
        self._events = EventsWriter(str(workdir / "tensorboard" / "events"), f".{time.time_ns()}")
        # Also where an error ends the run before `close`.
        self._finish = weakref.finalize(self, self._events.close)
        # TensorBoard drops what it has of this step and later.
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))
        self._events.flush()

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """One row."""
        if not self._enabled:
            return
        row = {"step": str(step)} | {name: repr(float(value)) for name, value in values.items()}
        new = [name for name in row if name not in self._columns]
        if new:
            _, rows = self._read()
            self._columns += new
            self._replace([*rows, row])
        else:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        for name, value in values.items():
            self._event(step, summary=scalar(name, float(value)))
        self._events.flush()

    def last(self, name: str) -> float:
        """The newest value of a metric that was written, by this process or an earlier one; 0 if there is none."""
        _, rows = self._read() if self._enabled else ([], [])
        return next((float(row[name]) for row in reversed(rows) if row.get(name)), 0.0)

    def close(self) -> None:
        """Closes the event file."""
        if self._enabled:
            self._finish()

    def _event(self, step: int, **what: SessionLog | Summary) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **what))

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        if not self._path.exists():
            return ["step"], []
        with self._path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")
            # The last line may be half a row, if the process was killed in the middle of it.
            rows = [row for row in reader if row["step"].isdecimal() and None not in row]
            return list(reader.fieldnames or ["step"]), rows

    def _replace(self, rows: list[dict[str, str]]) -> None:
        partial = self._path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, self._path)
