"""A run that stands still ends itself, and says where each of its threads was."""

import faulthandler
import sys
import tempfile
import threading
import time

from mrcnn_jax.errors import TRY_AGAIN
from mrcnn_jax.hosts import together
from mrcnn_jax.object_store import AnyPath

# Seconds that writing the stacks may take.
_WRITING = 60


class Watch:
    """Inside, at least every `minutes` one of `with`'s lines has to call `alive`.

        with Watch(30, workdir / "stall.txt") as watch:
            for batch in batches:
                watch.alive("step 7")

    If none does, the stacks of all threads are written to stderr and to `file`, and the process ends with exit status
    75, which is told to the other hosts. A host that waits for another in a collective stalls with it, so that of all
    hosts' stacks one shows the reason.
    """

    def __init__(self, minutes: float, file: AnyPath):
        self._seconds, self._file = minutes * 60, file
        self._last, self._what = time.monotonic(), "the start"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self.alive(self._what)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def alive(self, what: str) -> None:
        """Something was done: the time starts anew."""
        self._last, self._what = time.monotonic(), what

    def _look(self) -> None:
        while not self._over.wait(min(self._seconds / 4, 5)):
            if time.monotonic() - self._last > self._seconds:
                break
        else:
            return
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        # On the side: what stands still may be the disk, or the store, that this file is on.
        writer = threading.Thread(target=self._write, daemon=True)
        writer.start()
        writer.join(_WRITING)
        together.fail(
            f"nothing was done for {self._seconds / 60:g} minutes after {self._what}: {self._file} has all threads' "
            "stacks. Run the same command to go on from the last checkpoint, or raise config.train.stall_minutes",
            TRY_AGAIN,
        )

    def _write(self) -> None:
        # A file of the system's, which an object store has not.
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            self._file.write_text(file.read())
