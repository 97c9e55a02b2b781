"""A signal to one host ends all of them at the same place in the program.

Hosts count the places at which they could stop. None of them waits for the others there, so that they are not all at
the same count when a signal comes: the first host then asks all how far they are, and names the count after the
farthest. From its answer until it knows that count, a host does not go on; that takes a message and back, whatever the
hosts' main threads wait for.
"""

import threading
from collections.abc import Callable
from typing import Any


class Stop:
    """One host's part in it."""

    def __init__(self, index: int, count: int, send: Callable[[int, dict[str, Any]], None]):
        """`send` gives a message to another host, whose `receive` then gets it; the first host talks to all."""
        self._index, self._num_hosts, self._send = index, count, send
        self._changed = threading.Condition()
        self._count, self._at, self._waits = 0, None, False
        self._counts: dict[int, int] = {}
        self._asked = threading.Event()
        threading.Thread(target=self._pass_on, daemon=True).start()

    def ask(self) -> None:
        """All hosts are to stop as soon as they can. May be called in a signal handler."""
        self._asked.set()

    def reached(self, count: int) -> bool:
        """Whether all hosts stop here; `count` is one more at each call, on every host at the same place."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waits)
            self._count = count
            return self._at == count

    def receive(self, sender: int, message: dict[str, Any]) -> None:
        """A message of another host's."""
        with self._changed:
            match message["stop"]:
                case "please":
                    self._begin()
                case "where are you":
                    self._waits = True
                    self._send(0, {"stop": "here", "count": self._count})
                case "here":
                    self._note(sender, message["count"])
                case "at":
                    self._settle(message["count"])

    def _pass_on(self) -> None:
        # Not in the handler of the signal, which may have come while this host was sending something else.
        self._asked.wait()
        with self._changed:
            if self._index:
                self._send(0, {"stop": "please"})
            else:
                self._begin()

    def _begin(self) -> None:
        if self._counts:
            # Another host was told to stop too.
            return
        self._waits = True
        for other in range(1, self._num_hosts):
            self._send(other, {"stop": "where are you"})
        self._note(0, self._count)

    def _note(self, host: int, count: int) -> None:
        self._counts[host] = count
        if len(self._counts) == self._num_hosts:
            at = max(self._counts.values()) + 1
            for other in range(1, self._num_hosts):
                self._send(other, {"stop": "at", "count": at})
            self._settle(at)

    def _settle(self, count: int) -> None:
        self._at, self._waits = count, False
        self._changed.notify_all()
