"""Checksums of arrays, by which a checkpoint shows that it is still what was saved.

The files that Orbax writes have checksums of their tables, not of the numbers: a bit that a disk has turned over in an
array of weights is read as if nothing was.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def of_arrays(tree: Any) -> dict[str, int]:
    """The CRC-32 of every array of a tree, by its path ('params/backbone/stem/conv/kernel')."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(map(_name, path)): _crc(leaf) for path, leaf in leaves}


def of_text(values: Mapping[str, Any]) -> int:
    """The CRC-32 of JSON-able values."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def require(found: Mapping[str, int], saved: Mapping[str, int]) -> None:
    """Raises `ValueError`, naming the first, unless all that was `found` is as it was `saved`."""
    for name, value in found.items():
        # Where nothing was saved, an earlier version wrote the checkpoint.
        if saved.get(name, value) != value:
            raise ValueError(f"{name} is not what was saved: its file is damaged")


def _crc(x: Any) -> int:
    # As bytes: a bfloat16 has no buffer of its own.
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8))


def _name(key: Any) -> str:
    return str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))
