"""A state dict as `torch.save` writes it since torch 1.6, written without torch."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mrcnn_jax.pickles.writer import Call, Global, Persistent, write_pickle

_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


def write_torch(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes float32 and int64 arrays so that `torch.load(path, weights_only=True)` gives a dict of tensors."""
    tensors = {key: _tensor(array, str(number)) for number, (key, array) in enumerate(arrays.items())}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"".join(write_pickle(tensors, protocol=2)))
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{number}", array.astype(array.dtype.newbyteorder("<")).tobytes())
        archive.writestr("archive/version", "3\n")


def _tensor(array: np.ndarray, key: str) -> Call:
    storage = Persistent(("storage", Global("torch", _STORAGES[array.dtype.name]), key, "cpu", array.size))
    strides = tuple(stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides)
    hooks = Call(Global("collections", "OrderedDict"), ())
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 0, array.shape, strides, False, hooks))
