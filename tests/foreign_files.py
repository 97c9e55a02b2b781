"""Files of weights as torch, Detectron2 and Python 2 write them, made without these; honest ones and others."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage",
    "uint8": "ByteStorage", "bool": "BoolStorage",
}  # fmt: skip


class Named:
    """A global of any module, which need not exist."""

    def __init__(self, name: str) -> None:
        self.module, self.name = name.rsplit(".", 1)

    def __call__(self) -> None:
        """The pickler only wants to see that it can be called."""


class Call:
    """What a pickle gets by calling something, and then gives a state."""

    def __init__(self, function: Any, *arguments: object, state: object = None) -> None:
        self.function = Named(function) if isinstance(function, str) else function
        self.arguments, self.state = arguments, state

    def __reduce__(self) -> tuple:
        return self.function, self.arguments, self.state

    __call__ = Named.__call__


class Storage:
    """A storage of torch. What it says of its type and count may differ from its values."""

    def __init__(self, key: str, values: np.ndarray, kind: str = "", count: int | None = None, view: Any = None):
        self.key, self.values, self.view = key, values.ravel(), view
        self.kind = Named(f"torch.{kind or STORAGES[values.dtype.name]}")
        self.count = values.size if count is None else count


class Pickler(pickle._Pickler):
    """Python's own pickler, in Python, which writes the above too."""

    dispatch = pickle._Pickler.dispatch.copy()
    legacy = False

    def persistent_id(self, obj: object) -> tuple | None:
        if not isinstance(obj, Storage):
            return None
        return ("storage", obj.kind, obj.key, "cpu", obj.count, *([obj.view] if self.legacy else []))

    def save_named(self, obj: Named) -> None:
        self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        self.memoize(obj)

    dispatch[Named] = save_named


class Python2Pickler(Pickler):
    """Writes text and bytes as strings of Python 2, and NumPy's functions under the names that NumPy 1 had."""

    dispatch = Pickler.dispatch.copy()

    def save_string(self, obj: str | bytes) -> None:
        raw = obj.encode("latin-1") if isinstance(obj, str) else obj
        if not self.bin:
            self.write(b"S" + repr(raw)[1:].encode() + b"\n")
        elif len(raw) < 256:
            self.write(b"U" + struct.pack("<B", len(raw)) + raw)
        else:
            self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(obj)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(b"c" + f"{module}\n{name or obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = save_string


def pickled(value: object, protocol: int = 2, kind: type[Pickler] = Pickler, legacy: bool = False) -> bytes:
    """The pickle of a value in which `Named`, `Call` and `Storage` may be."""
    stream = io.BytesIO()
    pickler = kind(stream, protocol)
    pickler.legacy = legacy
    pickler.dump(value)
    return stream.getvalue()


def tensor(storage: Storage, offset: Any, size: Any, strides: Any) -> Call:
    """A tensor of torch; nothing of it has to fit."""
    return Call("torch._utils._rebuild_tensor_v2", storage, offset, size, strides, False, OrderedDict())


def parameter(data: Call) -> Call:
    """A parameter of torch."""
    return Call("torch._utils._rebuild_parameter", data, True, OrderedDict())


def state_dict(arrays: Mapping[str, np.ndarray]) -> tuple[OrderedDict, list[Storage]]:
    """Tensors by name as a module's `state_dict()` has them, and their storages."""
    storages = [Storage(str(i), array) for i, array in enumerate(arrays.values())]
    tensors: Any = OrderedDict()
    for (name, array), storage in zip(arrays.items(), storages, strict=True):
        strides = tuple(stride // array.itemsize for stride in np.array(array, order="C").strides)
        tensors[name] = tensor(storage, 0, array.shape, strides)
    tensors._metadata = OrderedDict({"": {"version": 1}})
    return tensors, storages


def zip_bytes(
    value: object, storages: list[Storage], *, compression: int = zipfile.ZIP_STORED, byte_order: bytes = b"little"
) -> bytes:
    """What `torch.save` writes since torch 1.6."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("archive/data.pkl", value if isinstance(value, bytes) else pickled(value))
        archive.writestr("archive/byteorder", byte_order)
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.values.tobytes())
        archive.writestr("archive/version", b"3\n")
    return stream.getvalue()


def legacy_bytes(value: object, storages: list[Storage], *, system: object = None) -> bytes:
    """What `torch.save` wrote before that."""
    if system is None:
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickled(part) for part in (MAGIC, 1001, system))
    body = value if isinstance(value, bytes) else pickled(value, legacy=True)
    keys = pickled([storage.key for storage in storages])
    return head + body + keys + b"".join(struct.pack("<q", s.values.size) + s.values.tobytes() for s in storages)


def _as_it_is(tensors: object) -> object:
    return tensors


def write_torch_zip(path: Path, arrays: Mapping[str, np.ndarray], wrap: Callable[[Any], object] | None = None) -> Path:
    """Writes arrays as a state_dict, or what `wrap` makes of that, such as `lambda tensors: {"model": tensors}`."""
    tensors, storages = state_dict(arrays)
    path.write_bytes(zip_bytes((wrap or _as_it_is)(tensors), storages))
    return path


def write_torch_legacy(
    path: Path, arrays: Mapping[str, np.ndarray], wrap: Callable[[Any], object] | None = None
) -> Path:
    """The same in the older format."""
    tensors, storages = state_dict(arrays)
    path.write_bytes(legacy_bytes((wrap or _as_it_is)(tensors), storages))
    return path


def write_pkl(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    wrap: Callable[[Any], object] | None = None,
    *,
    protocol: int = 2,
    python2: bool = False,
) -> Path:
    """A pickle of arrays, as Detectron2 has it with `lambda arrays: {"model": arrays, "__author__": "..."}`."""
    kind = Python2Pickler if python2 else Pickler
    path.write_bytes(pickled((wrap or _as_it_is)(dict(arrays)), protocol, kind))
    return path
