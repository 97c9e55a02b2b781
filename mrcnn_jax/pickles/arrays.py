"""What `read_pickle` makes of the names in pickles of Python's containers and NumPy's arrays: functions of our own."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from mrcnn_jax.pickles.reader import AsksForCode, Inert, Name, NotData, frozen_set

MAX_AXES = 32  # NumPy 2 allows 64, no layer has more than five.


class Array(Inert):
    """An array that a file describes: made first, told what it holds later, read when it is wanted."""

    def __init__(self, read: Callable[[], np.ndarray] | None = None) -> None:
        self._read = read

    def build(self, state: Any) -> None:
        """Takes NumPy's state: version, shape, dtype, whether in Fortran's order, bytes. Raises `NotData`."""
        _, shape, dtype, fortran, raw = state
        values = _values(raw, dtype, shape, "F" if fortran else "C")
        self._read = lambda: values

    def read(self) -> np.ndarray:
        """The array; it may be read-only, and share its memory. Raises `NotData`."""
        if self._read is None:
            raise NotData("is a damaged pickle: an array has no values")
        return self._read()


def checked_sizes(sizes: Any) -> tuple[int, ...]:
    """A shape, strides or an offset that a file gives, once it is known that one can reckon with them.

    Raises:
        NotData: more than `MAX_AXES`, or not all of them integers in [0, 2**62).
    """
    if not isinstance(sizes, tuple | list) or len(sizes) > MAX_AXES:
        raise NotData(f"is damaged: an array has no shape, or more than {MAX_AXES} axes")
    if not all(type(size) is int and 0 <= size < 2**62 for size in sizes):
        raise NotData("is damaged: an array has a negative or an absurd size, stride or offset")
    return tuple(sizes)


class _Dtype(Inert):
    def __init__(self, code: Any, *flags: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", code):
            shown = code[:20] if isinstance(code, str) else type(code).__name__
            raise NotData(f"holds an array of dtype {shown}, which is no number")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise NotData("is damaged: a dtype has no byte order")
        self.dtype = self.dtype.newbyteorder(order)


def _values(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    shape = checked_sizes(shape)
    raw = raw.encode("latin-1") if isinstance(raw, str) else raw  # A string of Python 2.
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise NotData("is damaged: an array's values are no bytes")
    if len(raw) != math.prod(shape) * dtype.dtype.itemsize:
        raise NotData(f"is damaged: an array of shape {shape} has {len(raw)} bytes")
    values = np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)
    return values.astype(dtype.dtype.newbyteorder("="), copy=False)


def _blank_array(kind: Any, *_: object) -> Array:
    if kind != Name("numpy", "ndarray"):
        raise NotData("is damaged: it makes an array that is none of NumPy's")
    return Array()


def _array_from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    values = _values(raw, dtype, shape, order)
    return Array(lambda: values)


def _scalar(dtype: Any, raw: Any) -> object:
    return _values(raw, dtype, (), "C")[()]


def _bytes(text: Any = "", codec: Any = "latin1") -> bytes:
    """Bytes, which protocols 0 to 2 write as text in latin-1."""
    if codec not in ("latin1", "latin-1"):
        raise AsksForCode("asks for a codec other than latin-1, which is not data")
    return bytes(text) if isinstance(text, bytes | bytearray) else text.encode("latin-1")


class _Dict(dict, Inert):
    """An OrderedDict, defaultdict or Counter. torch gives the first a state that tells of versions."""


def _dict(items: Any = ()) -> _Dict:
    pairs = [(key, value) for key, value in (items.items() if isinstance(items, dict) else items)]
    frozen_set([key for key, _ in pairs])
    return _Dict(pairs)


def _default_dict(_: object = None, items: Any = ()) -> _Dict:
    return _dict(items)


CONSTRUCTORS: dict[str, Callable[..., object]] = {
    "_codecs.encode": _bytes,
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": _default_dict,
    # What training scripts were called with.
    "argparse.Namespace": Inert,
    "pathlib.PosixPath": Inert,
    "pathlib.WindowsPath": Inert,
    "numpy.dtype": _Dtype,
}
for _module in ("builtins", "__builtin__"):
    CONSTRUCTORS |= {f"{_module}.{name}": _bytes for name in ("bytes", "bytearray")}
    CONSTRUCTORS |= {f"{_module}.{name}": frozen_set for name in ("set", "frozenset")}
# NumPy 1 and 2.
for _module in ("numpy.core", "numpy._core"):
    CONSTRUCTORS |= {
        f"{_module}.multiarray._reconstruct": _blank_array,
        f"{_module}.multiarray.scalar": _scalar,
        f"{_module}.numeric._frombuffer": _array_from_buffer,
    }
