"""A progress bar with the time that is left; plain lines where the output is not a terminal."""

import sys
import time

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """`with Progress("train", total) as progress: progress.update(done, "loss 1.2")`."""

    def __init__(self, name: str, total: int, start: int = 0, *, every_seconds: float = 15.0):
        self._name, self._total, self._start, self._every = name, total, start, every_seconds
        self._began = self._said = time.monotonic()
        columns = [
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        ]  # fmt: skip
        self._bar = RichProgress(*columns) if sys.stderr.isatty() and sys.stdout.isatty() else None

    def __enter__(self):
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total, completed=self._start, note="")
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Tell how far it is."""
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if now - self._said >= self._every or done == self._total:
            self._said = now
            left = (now - self._began) / max(done - self._start, 1) * (self._total - done)
            print(f"{self._name} {done}/{self._total}  {note}  {left / 60:.1f} min left", flush=True)

    def say(self, line: str) -> None:
        """A line that stays."""
        (self._bar.console.print if self._bar else lambda line: print(line, flush=True))(line)
