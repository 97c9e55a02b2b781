"""Ctrl-C and SIGTERM, made to fall between two steps of a loop and not into one."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mrcnn_jax.hosts.stop import Stop

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TOLD = b"\nstopping and saving; once more to end at once, without saving\n"
# The progress bar hides the cursor, and a process that is ended by a signal cannot show it again.
_SHOW_CURSOR = b"\x1b[?25h"


def leave_to_main_process() -> None:
    """For worker processes, which Ctrl-C reaches too: the first is the main process's affair, a second ends them.

    They also end when the main process is gone, which may have been killed and then cannot see to it.
    """
    signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, signal.SIG_DFL))
    # Here, since the command line imports this module, and few commands have workers.
    from multiprocessing import connection, parent_process

    def end_with(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    parent = parent_process()
    if parent is not None:
        threading.Thread(target=end_with, args=(parent.sentinel,), daemon=True).start()


class Interrupted(KeyboardInterrupt):
    """The program was asked to end, by Ctrl-C or by the system; `signal` is the number of what came."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.signal = number


class Interruption:
    """The first SIGINT or SIGTERM inside raises `Interrupted`; a second one ends the process at once.

        with Interruption() as interruption:
            for batch in batches:
                with interruption.held():
                    state = step(state, batch)

    What is `held` is not left half-way: a signal that comes meanwhile is raised at its end. Afterwards the handlers are
    those of before. In another thread than the main one, which alone may set handlers, signals do what they always did.

    Over several hosts (`several` is how they stop) a signal to one of them raises `Interrupted` on all, at the end of
    the same `held` or at the same `check`: each host has to come to these in the same order.
    """

    def __init__(self, several: Stop | None = None) -> None:
        self._several = several
        self._checks = 0
        self._previous = {}
        self._held = False
        self._received: int | None = None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            # None: a handler that was not set from Python, which cannot be given back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raises `Interrupted` at the end, if a signal came."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._several is not None:
            self.check()
        elif self._received is not None:
            raise Interrupted(self._received)

    def check(self) -> None:
        """Raises `Interrupted` where all hosts stop; on one host a signal does not wait for it."""
        self._checks += 1
        if self._several is not None and self._several.reached(self._checks):
            raise Interrupted(self._received or signal.SIGTERM)

    def _receive(self, number: int, frame: object) -> None:
        # The system's own handling: Python would run a handler only once XLA, which may compile for minutes, returns.
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
        # Not `print`: the signal may have come in the middle of one.
        os.write(2, _TOLD + _SHOW_CURSOR * os.isatty(2))
        self._received = number
        if self._several is not None:
            self._several.ask()
        elif not self._held:
            raise Interrupted(number)
