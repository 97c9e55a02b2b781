"""Weights from files of others: torch's two formats, NumPy's pickles, `.npz` and safetensors, whoever made them.

A file is taken for hostile: none of its formats can run code here, and reading takes memory of the order of its size.
"""

import codecs
import io
import math
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import safe_open

from mrcnn_jax.checkpoints.torch_files import LEGACY_MAGIC, TENSORS, read_legacy, read_zip
from mrcnn_jax.errors import UserError
from mrcnn_jax.pickles.arrays import Array, checked_sizes
from mrcnn_jax.pickles.reader import AsksForCode, NotData, read_pickle

# Where training scripts put the weights: torchvision, Detectron2 and others, then Caffe2's Detectron.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "params", "blobs")
# How far an .npz may be compressed; ordinary weights shrink by a tenth.
_MAX_GROWTH = 20
_ALWAYS_ALLOWED = 2**26


@dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds."""

    arrays: dict[str, np.ndarray]  # By the names of the file's own framework. Finite numbers; they may be read-only.
    other: tuple[str, ...] = ()  # The names of what was left out, such as an optimiser's state.
    metadata: dict[str, str] = field(default_factory=dict)  # Of safetensors' header; else empty.


def read_weights(path: Path) -> WeightFile:
    """Reads the arrays of a file of weights. The format is told from the first bytes, not from the name.

    The weights are the arrays at the top of the file or, if it has such an entry, under `model`, `state_dict`,
    `model_state_dict`, `params` or `blobs`. A prefix `module.` that all names share, from `DataParallel`, is taken off.

    Raises:
        UserError: there is no such file, it is of another kind or damaged, asks for code to be run, has no arrays, or
            one that is not of finite numbers.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder, where a file of weights is wanted: name the file in it")
        if not path.is_file():
            raise UserError(f"{path} does not exist, or is no file: check the path")
        with path.open("rb") as stream:
            return _checked(_read(path, stream), path.stat().st_size)
    except UserError:
        raise
    except AsksForCode as error:
        told = _one_line(str(error))
        raise UserError(f"{path} {told}, and was not run: save the model's state_dict alone, by torch.save") from error
    except NotData as error:
        raise UserError(f"{path} {_one_line(str(error))}: fetch it again from its authors") from error
    # Whatever a damaged file makes zipfile, NumPy and safetensors raise: their exceptions have no common class.
    except Exception as error:
        told = _one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"{path} cannot be read, or is damaged ({told}): fetch it again") from error


def _read(path: Path, stream: io.BufferedReader) -> WeightFile:
    size, head = path.stat().st_size, stream.read(512)
    stream.seek(0)
    if not head:
        raise UserError(f"{path} is empty: fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer and not the file itself: run git lfs pull")
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<"):
        raise UserError(f"{path} is a web page and no file of weights: fetch the file that the page links to")
    if head.startswith(b"PK"):
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
            if names and all(name.endswith(".npy") for name in names):
                return WeightFile(_read_npz(archive, size))
            return _weights(read_zip(archive, size))
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        with safe_open(path, framework="np") as file:
            names, metadata = file.keys(), file.metadata() or {}
            return WeightFile({name: file.get_tensor(name) for name in names}, metadata=metadata)
    # What a dictionary's pickle starts with in protocols 2 and later, and in 0 and 1.
    if head.startswith((b"\x80", b"(", b"}", b"c")):
        data = stream.read()
        value, end = read_pickle(data, TENSORS)
        return _weights(read_legacy(data, end) if isinstance(value, int) and value == LEGACY_MAGIC else value)
    raise UserError(f"{path} is of no format that is read: give weights as .pth, .pkl, .npz or .safetensors")


def _read_npz(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    total = sum(member.file_size for member in archive.infolist())
    if total > max(_ALWAYS_ALLOWED, _MAX_GROWTH * size):
        raise NotData(f"unfolds to {total} bytes from {size}, as no weights do")
    arrays = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        # Later versions of the format are for arrays of records alone, and their headers may have any length.
        with archive.open(member) as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise NotData(f"is damaged: '{name}' is no array of numbers")
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            if not _is_number(dtype):
                raise NotData(f"holds '{name}' of dtype {dtype}, which is no number")
            if math.prod(checked_sizes(shape)) * dtype.itemsize != member.file_size - stream.tell():
                raise NotData(f"is damaged: '{name}' of shape {shape} has {member.file_size} bytes")
        with archive.open(member) as stream:
            arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def _weights(value: object) -> WeightFile:
    """The arrays in what a pickle holds."""
    if not isinstance(value, dict):
        raise NotData(f"holds a {type(value).__name__}, where weights are a dictionary")
    wrapper = next((name for name in _WRAPPERS if _has_arrays(value.get(name))), None)
    entries = value if wrapper is None else value[wrapper]
    arrays = {name: entry.read() for name, entry in entries.items() if isinstance(entry, Array)}
    if not all(isinstance(name, str) for name in arrays):
        raise NotData("is damaged: an array has no name that is text")
    other = [str(name) for name in value if name != wrapper and name not in arrays]
    if wrapper is not None:
        other += [f"{wrapper}.{name}" for name in entries if name not in arrays]
    return WeightFile(arrays, tuple(_one_line(name) for name in other))


def _has_arrays(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(entry, Array) for entry in value.values())


def _checked(found: WeightFile, size: int) -> WeightFile:
    arrays = found.arrays
    if not arrays:
        raise NotData("holds no arrays")
    # Tensors may share a storage, but a hundred thousand of them would be too much for who copies them.
    if sum(array.nbytes for array in arrays.values()) > max(_ALWAYS_ALLOWED, _MAX_GROWTH * size):
        raise NotData("has far more numbers in its arrays than in the file")
    for name, array in arrays.items():
        if not name.isprintable():
            raise NotData("is damaged: the name of an array cannot be printed")
        if not _is_number(array.dtype):
            raise NotData(f"holds '{name}' of dtype {array.dtype}, which is no number")
        if not np.isfinite(array).all():
            raise NotData(f"has NaN or infinite values in '{name}'")
    if all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return replace(found, arrays=arrays)


def _is_number(dtype: np.dtype) -> bool:
    # To NumPy, bfloat16 is of kind V, as records are.
    return dtype.kind in "biuf" or dtype == ml_dtypes.bfloat16


def _one_line(text: str) -> str:
    """Text that may come from the file, fit to be shown: in one line, short, nothing in it that a terminal obeys."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line[:200])
