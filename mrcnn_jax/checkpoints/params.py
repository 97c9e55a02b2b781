"""The arrays of a model in a folder: read from a checkpoint without its training state, or written so."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from mrcnn_jax.checkpoints import checksums
from mrcnn_jax.checkpoints.folders import first_line, read_metadata, saved_checksums, step_folder, told_to_the_user
from mrcnn_jax.checkpoints.metadata import config_to_dict
from mrcnn_jax.errors import UserError
from mrcnn_jax.object_store import AnyPath, absolute, require


def load_params(path: str | AnyPath) -> tuple[Any, Any, dict[str, Any]]:
    """Reads what inference needs, without the optimiser, as NumPy arrays.

    Args:
        path: a run's workdir (its best checkpoint is taken, or the newest if none was evaluated), the folder of one
            step, or a folder that `save_params` wrote.

    Returns:
        `(params, batch_stats, metadata)`. The params are the averaged ones where the run kept an average (`ema`).

    Raises:
        UserError: there is no checkpoint, or it cannot be read.
    """
    path = absolute(path)
    require(path)
    folder = step_folder(path)
    try:
        metadata = read_metadata(folder)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree
            params = "ema" if tree.get("ema") else "params"
            wanted = {key: tree.get(key) or {} for key in (params, "batch_stats")}
            arrays = reader.restore(
                folder / "state",
                args=ocp.args.PyTreeRestore(
                    item=wanted,
                    restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
                    partial_restore=True,
                ),
            )
        checksums.require(checksums.of_arrays(arrays), saved_checksums(folder))
    except Exception as error:
        raise UserError(
            f"{folder} cannot be read as a checkpoint ({first_line(error)}): give another step's folder or a new copy"
        ) from error
    return arrays[params], arrays["batch_stats"], metadata


def save_params(path: str | AnyPath, params: Any, batch_stats: Any, metadata: Mapping[str, Any]) -> None:
    """Writes a folder that `load_params` reads: a checkpoint without training state.

    Raises:
        UserError: the folder exists already, or the disk is full.
    """
    folder = absolute(path)
    if folder.exists():
        raise UserError(f"{folder} exists already: choose another folder, or delete it")
    state = {"params": params, "batch_stats": batch_stats}
    with told_to_the_user(folder), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(
            folder,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                metadata=ocp.args.JsonSave(dict(metadata)),
                checksums=ocp.args.JsonSave(checksums.of_checkpoint(state, metadata, {})),
            ),
        )


def digest(variables: Any, model: ConfigDict) -> str:
    """A short text that differs where a model's arrays or its config differ."""
    found = hashlib.blake2b(json.dumps(config_to_dict(model), sort_keys=True).encode(), digest_size=16)
    for leaf in jax.tree.leaves(variables):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()
