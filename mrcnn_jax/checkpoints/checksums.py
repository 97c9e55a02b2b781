"""Checksums of arrays, by which a checkpoint shows that it is still what was saved.

The files that Orbax writes have checksums of their tables, not of the numbers: a bit that a disk has turned over in an
array of weights is read as if nothing was.
"""

import functools
import json
import operator
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mrcnn_jax.hosts import together


def of_arrays(tree: Any) -> dict[str, int]:
    """The CRC-32 of every array of a tree, by its path ('params/backbone/stem/conv/kernel').

    All hosts call it together where they have parts of an array each.
    """
    leaves = {"/".join(map(_name, path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    found = {name: _crc(leaf) for name, leaf in leaves.items() if not _in_parts(leaf)}
    return found | _of_parts({name: leaf for name, leaf in leaves.items() if _in_parts(leaf)})


def of_text(values: Mapping[str, Any]) -> int:
    """The CRC-32 of JSON-able values."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def of_checkpoint(state: Any, metadata: Mapping[str, Any], data_state: Mapping[str, Any]) -> dict[str, int]:
    """Those of all that a checkpoint has to hold as it was."""
    texts = {"metadata": of_text(metadata), "data": of_text(data_state)}
    return of_arrays(state) | texts


def require(found: Mapping[str, int], saved: Mapping[str, int]) -> None:
    """Raises `ValueError`, naming the first, unless all that was `found` is as it was `saved`."""
    for name, value in found.items():
        # Where nothing was saved, an earlier version wrote the checkpoint.
        if saved.get(name, value) != value:
            raise ValueError(f"{name} is not what was saved: its file is damaged")


def _crc(x: Any) -> int:
    # As bytes: a bfloat16 has no buffer of its own.
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8))


def _in_parts(x: Any) -> bool:
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def _of_parts(arrays: Mapping[str, jax.Array]) -> dict[str, int]:
    """A CRC is linear: that of the sum (XOR) of all hosts' texts follows from theirs and from that of zeros."""
    if not arrays:
        return {}
    everybody = together.gather({name: _crc(_own_part(x)) for name, x in arrays.items()})
    found = {}
    # On the first host alone.
    for name, x in arrays.items() if everybody else ():
        zeros = _crc(np.zeros(x.shape, x.dtype)) if len(everybody) % 2 == 0 else 0
        found[name] = functools.reduce(operator.xor, (sums[name] for sums in everybody), zeros)
    return together.share(found)


def _own_part(x: jax.Array) -> np.ndarray:
    """The whole array, with zeros where it is another host's; of the hosts that have a number, one gives it."""
    part = np.zeros(x.shape, x.dtype)
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            part[shard.index] = shard.data
    return part


def _name(key: Any) -> str:
    return str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))
