"""The hosts of a run meet: all of them, each once, with the same versions; or each is told, in one line, what is wrong.

The first host listens at the coordinator's address, and the others come and say who they are. Only when all are there
is JAX's runtime started, which by itself aborts a process with a stack of addresses where one does not come.
"""

import os
import queue
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from mrcnn_jax.errors import UserError
from mrcnn_jax.hosts.line import SHORT, Line
from mrcnn_jax.hosts.place import Place

# Seconds within which a connection has to say who it is.
_INTRODUCTION = 10.0


class Everywhere(UserError):
    """An error that each host of the run raises by itself, so that none has to tell the others."""


class Meeting(NamedTuple):
    """Who is there."""

    # To every other host on the first one; on the others, to that one.
    lines: dict[int, Line]
    # Of each host in turn.
    names: tuple[str, ...]
    # Where JAX's runtime is to meet.
    service: str


class _Guest(NamedTuple):
    line: Line
    index: int
    count: int
    name: str
    versions: dict[str, str]


def meet(place: Place, versions: Mapping[str, str], wait: float) -> Meeting:
    """Comes back when all hosts of the run are there.

    Args:
        place: which of them this is.
        versions: what has to be the same on all, by name.
        wait: for how many seconds the others are waited for; a host that has found the first one waits as long again.

    Raises:
        Everywhere: a host is missing or comes twice, or they differ in their versions or their number.
        UserError: the coordinator's address cannot be listened at or reached.
    """
    own = {"index": place.index, "count": place.count, "name": socket.gethostname(), "versions": dict(versions)}
    return _host(place, own, wait) if place.index == 0 else _visit(place, own, wait)


def title(index: int, name: str) -> str:
    """How a host is called in messages."""
    return f"host {index} ({name})"


def _host(place: Place, own: dict, wait: float) -> Meeting:
    port = place.address[1]
    try:
        listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=place.count)
    except OSError:
        try:
            listener = socket.create_server(("", port), backlog=place.count)
        except OSError as error:
            raise UserError(
                f"cannot listen at port {port} ({os.strerror(error.errno or 0)}): another run or program uses it; "
                "choose another port in --coordinator"
            ) from None
    arrived: queue.Queue[_Guest | None] = queue.Queue()
    threading.Thread(target=_admit, args=(listener, arrived), daemon=True).start()

    guests: dict[int, _Guest] = {}
    everybody: list[Line] = []
    strangers, problem, until = 0, None, time.monotonic() + wait
    while len(everybody) < place.count - 1:
        try:
            guest = arrived.get(timeout=max(until - time.monotonic(), 0.01))
        except queue.Empty:
            problem = problem or _absence(place, guests, strangers, wait)
            break
        if guest is None:
            strangers += 1
            continue
        everybody.append(guest.line)
        if problem is None and (problem := _objection(guest, guests, own)) is not None:
            # Those who are on their way are to hear of it too.
            until = min(until, time.monotonic() + _INTRODUCTION)
        guests.setdefault(guest.index, guest)
    listener.close()
    if problem is not None:
        _tell(everybody, {"error": problem})
        for line in everybody:
            line.close()
        raise Everywhere(problem)

    names = (own["name"], *(guests[index].name for index in range(1, place.count)))
    service = f"{place.coordinator.rpartition(':')[0]}:{_free_port()}"
    _tell(everybody, {"names": names, "service": service})
    return Meeting({index: guest.line for index, guest in guests.items()}, names, service)


def _absence(place: Place, guests: Iterable[int], strangers: int, wait: float) -> str:
    missing = [str(index) for index in range(1, place.count) if index not in guests]
    others = f"; {strangers} connections were of something else" if strangers else ""
    return (
        f"{len(missing)} of {place.count} hosts did not come within {wait:.0f} seconds (--process-id "
        f"{', '.join(missing)}{others}): start the command on every host, with --coordinator={place.coordinator} "
        "where it is not found by itself"
    )


def _objection(guest: _Guest, guests: Mapping[int, _Guest], own: dict) -> str | None:
    """What is wrong with a host that has come."""
    name, first = title(guest.index, guest.name), title(0, own["name"])
    if guest.count != own["count"]:
        return (
            f"--num-processes differs: {own['count']} on {first}, {guest.count} on {name}: start all hosts with the "
            "same number"
        )
    if guest.index == 0 or guest.index in guests:
        other = own["name"] if guest.index == 0 else guests[guest.index].name
        return f"two hosts have --process-id={guest.index} ({other} and {guest.name}): number them from 0, each once"
    for key, version in own["versions"].items():
        if guest.versions.get(key) != version:
            return (
                f"versions differ: {key} {version} on {first}, {guest.versions.get(key)} on {name}: install the same "
                "on all hosts"
            )
    return None


def _admit(listener: socket.socket, arrived: "queue.Queue[_Guest | None]") -> None:
    """Takes whoever comes until the listener is closed, and lets each introduce itself in its own time."""
    # A thread that waits in `accept` would not notice that another closes the socket.
    listener.settimeout(0.2)
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        except OSError:
            return
        threading.Thread(target=_introduce, args=(connection, arrived), daemon=True).start()


def _introduce(connection: socket.socket, arrived: "queue.Queue[_Guest | None]") -> None:
    line = Line(connection)
    try:
        said = line.receive(SHORT, _INTRODUCTION)
        versions = {str(key): str(value) for key, value in said["versions"].items()}
        arrived.put(_Guest(line, int(said["index"]), int(said["count"]), str(said["name"]), versions))
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        line.close()
        arrived.put(None)


def _visit(place: Place, own: dict, wait: float) -> Meeting:
    until = time.monotonic() + wait
    line = _call(place, until)
    try:
        line.send(own)
        # The first host may have begun to wait later than this one.
        answer = line.receive(2**20, until - time.monotonic() + wait)
        if "error" not in answer:
            return Meeting({0: line}, tuple(answer["names"]), str(answer["service"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        line.close()
        raise UserError(
            f"what listens at {place.coordinator} is not the first host of this run, or it has ended "
            f"({type(error).__name__}): look at its output, or choose another port in --coordinator"
        ) from None
    line.close()
    raise Everywhere(str(answer["error"]))


def _call(place: Place, until: float) -> Line:
    while True:
        try:
            return Line(socket.create_connection(place.address, timeout=5))
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"the first host does not answer at {place.coordinator} ({error.strerror or error}): start the "
                    "command there with --process-id=0, or correct --coordinator"
                ) from None
            time.sleep(0.2)


def _tell(lines: Iterable[Line], message: dict) -> None:
    for line in lines:
        # Gone again: the line is broken, which whoever listens to it will notice.
        with suppress(OSError):
            line.send(message)


def _free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        return listener.getsockname()[1]
