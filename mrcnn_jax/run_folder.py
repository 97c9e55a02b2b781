"""The files of a run beside its checkpoints, which grow line by line: on a disk, and from there to an object store."""

import logging
import shutil
import tempfile
import time
import weakref
from pathlib import Path

from mrcnn_jax.errors import Unreachable
from mrcnn_jax.object_store import AnyPath, in_one_line, require

# What a run that goes on reads of what it wrote before.
_READ_AGAIN = "metrics.csv"


class RunFolder:
    """A workdir, and the folder on a disk to write to instead: of a workdir on a disk, that workdir itself.

        folder = RunFolder(workdir)
        with folder:
            (folder.local / "notes.txt").write_text("...")
            folder.publish()

    An object store has whole objects only: a file that changed is sent as a whole, and read there as it was or as it
    is. At the end of a `with`, however it ends, all is sent. Each host has a folder of its own and sends what it wrote.
    """

    def __init__(self, workdir: AnyPath):
        """Raises `UserError` where the workdir is in an object store that cannot be used or, `Unreachable`, read."""
        self._workdir = workdir
        self._sent: dict[Path, tuple[int, int]] = {}
        self._last = time.monotonic()
        if isinstance(workdir, Path):
            self.local = workdir
            return
        require(workdir)
        self.local = Path(tempfile.mkdtemp(prefix="mrcnn_run_"))
        weakref.finalize(self, shutil.rmtree, self.local, ignore_errors=True)
        try:
            if (workdir / _READ_AGAIN).exists():
                (self.local / _READ_AGAIN).write_bytes((workdir / _READ_AGAIN).read_bytes())
        # Here and below: what a network and a store raise has no common class.
        except Exception as error:
            raise Unreachable(f"{workdir / _READ_AGAIN} cannot be read ({in_one_line(error)}): try again") from error
        self._sent = {file: _mark(file) for file in self.local.iterdir()}

    def publish(self, every: float = 0.0) -> None:
        """Sends what changed, unless something was sent less than `every` seconds ago.

        Raises `Unreachable` where that fails; what is in the store is then as it was.
        """
        if self.local == self._workdir or time.monotonic() - self._last < every:
            return
        for file in sorted(file for file in self.local.rglob("*") if file.is_file()):
            mark, target = _mark(file), self._workdir / file.relative_to(self.local).as_posix()
            if self._sent.get(file) == mark:
                continue
            try:
                target.write_bytes(file.read_bytes())
            except Exception as error:
                raise Unreachable(
                    f"{target} cannot be written ({in_one_line(error)}): run the same command to go on"
                ) from error
            self._sent[file] = mark
        self._last = time.monotonic()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.publish()
        except Unreachable as failure:
            if error is None:
                raise
            logging.getLogger(__name__).warning("%s", failure)


def _mark(file: Path) -> tuple[int, int]:
    """What is other after a file was written to."""
    return file.stat().st_mtime_ns, file.stat().st_size
