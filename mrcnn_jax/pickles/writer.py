"""Pickles of arrays for programs that are not here: written opcode by opcode, so that a name need not be importable.

Python's own pickler takes only what it can import: there is no torch here, and NumPy 2 has names that NumPy 1 does not
know.
"""

import pickle
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Global:
    """Something by its module and name."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """What a callable returns for arguments and, where there is a state, becomes by it."""

    function: Global
    arguments: tuple
    state: Any = None


@dataclass(frozen=True)
class Persistent:
    """An object that the reader finds by this id."""

    id: tuple


def write_pickle(value: Any, protocol: int = 3) -> Iterator[bytes]:
    """The pickle of containers, numbers, texts, bytes, NumPy arrays and the classes above, in pieces.

    Without bytes or arrays it is one of protocol 2 too, and may say so.
    """
    yield pickle.PROTO + bytes([protocol])
    yield from _write(value)
    yield pickle.STOP


def _write(value: Any) -> Iterator[bytes]:
    match value:
        case None:
            yield pickle.NONE
        case bool():
            yield pickle.NEWTRUE if value else pickle.NEWFALSE
        case int() if -(2**31) <= value < 2**31:
            yield pickle.BININT + struct.pack("<i", value)
        case int():
            encoded = pickle.encode_long(value)
            yield pickle.LONG1 + bytes([len(encoded)]) + encoded
        case str():
            encoded = value.encode()
            yield pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded
        case bytes() | memoryview():
            yield pickle.BINBYTES + struct.pack("<I", len(value))
            yield bytes(value)
        case tuple():
            yield pickle.MARK
            for item in value:
                yield from _write(item)
            yield pickle.TUPLE
        case list():
            yield pickle.EMPTY_LIST + pickle.MARK
            for item in value:
                yield from _write(item)
            yield pickle.APPENDS
        case Mapping():
            yield pickle.EMPTY_DICT + pickle.MARK
            for key, item in value.items():
                yield from _write(key)
                yield from _write(item)
            yield pickle.SETITEMS
        case Global():
            yield pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
        case Call():
            yield from _write(value.function)
            yield from _write(value.arguments)
            yield pickle.REDUCE
            if value.state is not None:
                yield from _write(value.state)
                yield pickle.BUILD
        case Persistent():
            yield from _write(value.id)
            yield pickle.BINPERSID
        case np.ndarray():
            yield from _write(_array(value))
        case _:
            raise TypeError(f"no pickle is written of a {type(value).__name__}")


def _array(array: np.ndarray) -> Call:
    """As NumPy 1 pickled it, which NumPy 2 still reads."""
    array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    kind = Call(Global("numpy", "dtype"), (array.dtype.str[1:], False, True), (3, "<", None, None, None, -1, -1, 0))
    empty = Global("numpy.core.multiarray", "_reconstruct")
    state = (1, array.shape, kind, False, array.tobytes())
    return Call(empty, (Global("numpy", "ndarray"), (0,), b"b"), state)
