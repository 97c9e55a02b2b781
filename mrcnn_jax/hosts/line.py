"""A connection between two hosts: JSON messages, each after its length."""

import json
import socket
import struct
import threading
from contextlib import suppress
from typing import Any

_LENGTH = struct.Struct("!Q")
# Before a host has said who it is, and afterwards: of results of an evaluation there may be some hundred MiB.
SHORT, LONG = 2**16, 2**33


class Line:
    """Sends and receives; any thread may send."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._sending = threading.Lock()
        # A machine that loses its power says nothing: three questions without an answer, and it counts as gone.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: Any) -> None:
        """Raises `OSError` where the connection is broken."""
        data = json.dumps(message, separators=(",", ":")).encode()
        with self._sending:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, longest: int = LONG, seconds: float | None = None) -> Any:
        """The next message.

        Raises:
            OSError: nothing came in time, or the connection is broken; `EOFError` where the other side has closed it.
            ValueError: what came is not a message of at most `longest` bytes.
        """
        self._socket.settimeout(seconds)
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > longest:
            raise ValueError(f"a message of {length:,} bytes")
        return json.loads(self._exactly(length))

    def half_close(self) -> None:
        """Says that nothing more comes; what was sent arrives."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = self._socket.recv(min(length - len(data), 2**20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)
