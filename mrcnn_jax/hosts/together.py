"""What the hosts of a run do together: compare, gather, and end. On one host all of it is trivial.

A host that fails tells the others; that one is gone is seen when its connection closes, at once where the process was
killed. Whatever the others are doing, in a collective that never ends or in a compilation, each then prints one line
and exits.
"""

import os
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mrcnn_jax.errors import TRY_AGAIN
from mrcnn_jax.hosts.line import Line
from mrcnn_jax.hosts.place import WAIT, Place
from mrcnn_jax.hosts.roll_call import Everywhere, meet, title
from mrcnn_jax.hosts.stop import Stop

# Seconds in which the others are told, or take leave.
_FAREWELL = 5

_crew: "_Crew | None" = None


def join(place: Place, versions: Mapping[str, str], wait: float = float(WAIT)) -> str:
    """Meets the other hosts, and listens to them from then on; returns where JAX's runtime is to meet.

    Raises:
        UserError: as of `roll_call.meet`.
    """
    global _crew
    meeting = meet(place, versions, wait)
    _crew = _Crew(place.index, meeting.lines, meeting.names)
    return meeting.service


def first() -> bool:
    """Whether this is the host that writes files and speaks to people."""
    return _crew is None or _crew.index == 0


def several() -> bool:
    """Whether there are other hosts."""
    return _crew is not None


def stop() -> Stop | None:
    """How a signal to one host ends all; None on one host."""
    return None if _crew is None else _crew.stop


def rank_on_machine() -> int | None:
    """Which process of this machine this is, from 0; None where it is the only one there."""
    return None if _crew is None else _crew.rank_on_machine()


def gather(value: Any) -> list[Any]:
    """On the first host the JSON-able values of all, in their order; nothing on the others, which do not wait."""
    return [value] if _crew is None else _crew.gather(value)


def share(value: Any) -> Any:
    """The first host's JSON-able value, on every host."""
    return value if _crew is None else _crew.share(value)


def wait_for_all() -> None:
    """Comes back when every host is here."""
    gather(None)
    share(None)


def same(values: Mapping[str, Any], remedy: str) -> None:
    """Raises a `UserError` on every host where one of the JSON-able `values` is not the same on all.

    The line names the first such value, how many more there are, two hosts, what each has, and the remedy.
    """
    if _crew is not None:
        everybody = gather(dict(values))
        _end_if(_difference(everybody, _crew.titles, remedy) if everybody else None)


def all_well(well: bool, line: str) -> None:
    """Raises a `UserError` on every host where not all are `well`: '{hosts}' in `line` becomes which are not."""
    titles = _crew.titles if _crew else ["this host"]
    ill = ", ".join(titles[index] for index, value in enumerate(gather(well)) if not value)
    _end_if(line.format(hosts=ill) if ill else None)


def _end_if(line: str | None) -> None:
    """Raises the first host's line, where it has one, on every host."""
    line = share(line)
    if line is not None:
        raise Everywhere(line)


def _difference(everybody: Sequence[dict[str, Any]], titles: Sequence[str], remedy: str) -> str | None:
    """What the first host and another do not agree in."""
    own = everybody[0]
    for other, name in zip(everybody, titles, strict=True):
        keys = [key for key in own | other if own.get(key, "nothing") != other.get(key, "nothing")]
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            here, there = own.get(keys[0], "nothing"), other.get(keys[0], "nothing")
            return f"{keys[0]} differs{more}: {here} on {titles[0]}, {there} on {name}: {remedy}"
    return None


def fail(line: str, status: int, *, tell: bool = True) -> NoReturn:
    """Ends this process with one line, and the other hosts; those say it themselves where `tell` is False."""
    if _crew is not None and tell:
        _crew.end(line, status, tell=True)
    leave()
    _say(line)
    os._exit(status)


def leave() -> None:
    """Waits for the others, and takes leave: that a connection closes means nothing any more."""
    if _crew is not None:
        _crew.leave()


class _Crew:
    def __init__(self, index: int, lines: Mapping[int, Line], names: tuple[str, ...]):
        self.index, self._lines, self._names = index, lines, names
        self.titles = [title(index, name) for index, name in enumerate(names)]
        self._values: dict[int, queue.Queue] = {other: queue.Queue() for other in lines}
        self._left = {other: threading.Event() for other in lines}
        self._ending = threading.Lock()
        self._leaving = False
        self.stop = Stop(index, len(names), self._send)
        for other, line in lines.items():
            threading.Thread(target=self._listen, args=(other, line), daemon=True).start()

    def rank_on_machine(self) -> int | None:
        here = [index for index, name in enumerate(self._names) if name == self._names[self.index]]
        return here.index(self.index) if len(here) > 1 else None

    def gather(self, value: Any) -> list[Any]:
        if self.index:
            self._send(0, {"value": value})
            return []
        return [value, *(self._values[other].get() for other in sorted(self._lines))]

    def share(self, value: Any) -> Any:
        if self.index:
            return self._values[0].get()
        for other in self._lines:
            self._send(other, {"value": value})
        return value

    def leave(self) -> None:
        self._leaving = True
        for other in self._lines:
            self._send(other, {"bye": True})
        for event in self._left.values():
            event.wait(_FAREWELL)

    def end(self, line: str, status: int, *, tell: bool) -> NoReturn:
        # Only the first thread to get here speaks; the others wait for the process to end.
        self._ending.acquire()
        _say(line)
        told = line if line.startswith("host ") else f"{self.titles[self.index]}: {line}"
        for other, connection in self._lines.items() if tell else ():
            self._send(other, {"error": told, "status": status})
            connection.half_close()
        # What was sent has arrived when the other side, which ends on it, has closed the line.
        for event in self._left.values():
            event.wait(_FAREWELL if tell else 0)
        os._exit(status)

    def _listen(self, other: int, line: Line) -> None:
        while True:
            try:
                message = line.receive()
            except (OSError, EOFError, ValueError):
                # First, so that whoever waits for this line to close goes on.
                self._left[other].set()
                if not self._leaving:
                    gone = (
                        f"{self.titles[other]} is gone: its own output says why. Run the same command on all hosts to "
                        "go on from the last checkpoint"
                    )
                    self.end(gone, TRY_AGAIN, tell=self.index == 0)
                return
            if "stop" in message:
                self.stop.receive(other, message)
            elif "error" in message:
                self._left[other].set()
                self.end(str(message["error"]), int(message["status"]), tell=self.index == 0)
            elif "bye" in message:
                self._leaving = True
                self._left[other].set()
                return
            else:
                self._values[other].put(message["value"])

    def _send(self, other: int, message: dict) -> None:
        try:
            self._lines[other].send(message)
        except OSError:
            # The thread that listens to this line ends the process, with the reason if there was time to tell it.
            if not self._ending.locked() and not self._leaving:
                time.sleep(_FAREWELL)


def _say(line: str) -> None:
    sys.stdout.flush()
    print(f"mrcnn: error: {' '.join(line.splitlines())}", file=sys.stderr, flush=True)
