"""What `torch.save` wrote, read without torch: the zip of torch 1.6 and later, and the stream of pickles before it.

Both hold a pickle in which a tensor is a view (offset, size, strides) into a storage, and a storage is a persistent id.
The storages' bytes are beside the pickle. Facts: `torch/serialization.py` and `torch/_utils.py`.
"""

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from mrcnn_jax.pickles.arrays import CONSTRUCTORS, Array, checked_sizes
from mrcnn_jax.pickles.reader import AsksForCode, Inert, Name, NotData, read_pickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_DTYPES = {
    "Double": np.dtype("<f8"),
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
    "Untyped": np.dtype("u1"),
}


@dataclass(frozen=True)
class _Storage:
    """`count` numbers from number `start` on, in the bytes that `read(key)` gives."""

    read: Callable[[str], bytes | memoryview]
    key: str
    dtype: np.dtype
    start: int
    count: int


def read_zip(archive: zipfile.ZipFile, file_size: int) -> object:
    """Reads the zip format.

    Args:
        archive: opened, and left open: tensors are read from it when they are wanted, each storage once.
        file_size: in bytes. The members of a zip that is no bomb are together no larger.

    Returns:
        The object that was saved, its tensors as `Array`.

    Raises:
        NotData, and what `zipfile` raises: it is damaged or not data.
    """
    members = {member.filename: member for member in archive.infolist()}
    if any(name.endswith("/constants.pkl") for name in members):
        raise AsksForCode("is a program of TorchScript, which is not data")
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise NotData("is a compressed zip, as torch writes none")
    if sum(member.file_size for member in archive.infolist()) > file_size:
        raise NotData("is a zip whose members are larger than itself")
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise NotData(f"is a zip with {len(pickles)} data.pkl in it, where torch writes one")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in members and archive.read(f"{prefix}byteorder") != b"little":
        raise NotData("was saved by a big-endian machine")

    @cache
    def read(key: str) -> bytes:
        if f"{prefix}data/{key}" not in members:
            raise NotData(f"is damaged: it has no storage {key}")
        return archive.read(f"{prefix}data/{key}")

    return read_pickle(archive.read(pickles[0]), TENSORS, lambda identity: _storage(identity, read))[0]


def read_legacy(data: bytes, start: int) -> object:
    """Reads the older format.

    Args:
        data: the whole file.
        start: the place behind its first pickle, which is `LEGACY_MAGIC`.

    Returns:
        The object that was saved, its tensors as `Array` that share memory with `data`.

    Raises:
        NotData: it is damaged or not data.
    """
    protocol, start = read_pickle(data, CONSTRUCTORS, start=start)
    system, start = read_pickle(data, CONSTRUCTORS, start=start)
    if not isinstance(protocol, int) or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise NotData("is damaged: the protocol is none of torch's")
    if system.get("little_endian") is not True:
        raise NotData("was saved by a big-endian machine")
    located: dict[str, memoryview] = {}
    item_sizes: dict[str, int] = {}

    def persistent(identity: Any) -> _Storage:
        storage = _storage(identity, located.__getitem__)
        if item_sizes.setdefault(storage.key, storage.dtype.itemsize) != storage.dtype.itemsize:
            raise NotData("is damaged: a storage has two types")
        return storage

    value, start = read_pickle(data, TENSORS, persistent, start=start)
    keys, start = read_pickle(data, CONSTRUCTORS, start=start)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != item_sizes.keys():
        raise NotData("is damaged: its storages are not those that its tensors need")
    for key in keys:
        count = int.from_bytes(data[start : start + 8], "little", signed=True)
        end = start + 8 + count * item_sizes[key]
        if not start + 8 <= end <= len(data):
            raise NotData(f"was cut short or is damaged: storage {key} has {count} numbers")
        located[key] = memoryview(data)[start + 8 : end]
        start = end
    return value


def _storage(identity: Any, read: Callable[[str], bytes | memoryview]) -> _Storage:
    """The storage of a persistent id: "storage", type, key, device, count; older files add a view or None."""
    kind, of_type, *rest = identity
    if kind == "module":
        raise AsksForCode("holds a whole model, which is not data")
    key, _, count, *view = rest
    if kind != "storage" or not isinstance(of_type, Name) or not isinstance(key, str):
        raise NotData("refers to something beside its pickle that is no storage")
    name = of_type.name.removesuffix("Storage")
    if of_type.module not in ("torch", "torch.storage") or name not in _DTYPES:
        raise NotData(f"holds a {of_type}, of which no array of numbers can be made")
    (count,) = checked_sizes([count])
    storage = _Storage(read, key, _DTYPES[name], 0, count)
    if view and view[0] is not None:
        _, start, count = view[0]
        start, count = checked_sizes([start, count])
        if start + count > storage.count:
            raise NotData(f"is damaged: a view of storage {key} is larger than it")
        storage = replace(storage, start=start, count=count)
    return storage


def _tensor(storage: Any, offset: Any, size: Any, strides: Any, *_: object) -> Array:
    (offset,), size, strides = checked_sizes([offset]), checked_sizes(size), checked_sizes(strides)
    if not isinstance(storage, _Storage) or len(size) != len(strides):
        raise NotData("is damaged: a tensor has no storage, or fewer strides than axes")
    if 0 not in size:
        last = offset + sum((n - 1) * stride for n, stride in zip(size, strides, strict=True))
        # Strides of 0 would let a small storage pass for any number of elements.
        if last >= storage.count or math.prod(size) > storage.count:
            raise NotData(f"is damaged: a tensor of shape {size} does not fit its storage of {storage.count} numbers")
    return Array(lambda: _view(storage, offset, size, strides))


def _view(storage: _Storage, offset: int, size: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    raw, dtype = storage.read(storage.key), storage.dtype
    if len(raw) < (storage.start + storage.count) * dtype.itemsize:
        raise NotData(f"is damaged: storage {storage.key} has {len(raw)} bytes, fewer than its {storage.count} numbers")
    if 0 in size:
        return np.zeros(size, dtype)
    offset = (storage.start + offset) * dtype.itemsize
    return np.ndarray(size, dtype, raw, offset, [stride * dtype.itemsize for stride in strides])


def _parameter(tensor: Any, *_: object) -> Array:
    if not isinstance(tensor, Array):
        raise NotData("is damaged: a parameter has no tensor")
    return tensor


TENSORS: dict[str, Callable[..., object]] = {
    **CONSTRUCTORS,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": Inert,
    "torch.device": Inert,
}
