"""What all hosts of a run have to have alike before it starts: the config, the data, the run's folder, the weights.

Each function raises a `UserError` on every host, naming two that differ; on one host it does nothing.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from mrcnn_jax.checkpoints.metadata import flat
from mrcnn_jax.checkpoints.params import digest
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.errors import UserError
from mrcnn_jax.hosts import together
from mrcnn_jax.object_store import AnyPath

# Where a host has its files, and how many processes read them, is its own affair.
_OF_THE_HOST = ("data.root", "data.num_workers", "eval.num_workers", "train.init")


def same_config(config: Mapping[str, Any]) -> None:
    """Every key of the config, but for where a host's files are."""
    values = {f"config.{key}": value for key, value in flat(config).items() if key not in _OF_THE_HOST}
    together.same(values, "start all hosts with the same --config and overrides")


def same_data(root: str, **splits: Dataset) -> None:
    """The number of images and the classes of each data set, all read from below a host's own `root`."""
    for what, data in splits.items():
        values = {f"how many {what} images there are": len(data.records), f"the {what} classes": list(data.classes)}
        together.same(values, f"give all hosts the same files (config.data.root={root} here)")


def same_weights(variables: Any, model: Any) -> None:
    """Each bit of what training starts from."""
    if together.several():
        remedy = "give all hosts the same file of weights (config.train.init) and the same kind of device"
        together.same({"what training starts from": digest(variables, model)}, remedy)


def same_folder(folder: AnyPath) -> None:
    """Whether what one host writes to a folder, which is made, is there for the others."""
    if not together.several():
        return
    file = folder / together.share(f".shared-{secrets.token_hex(8)}")
    if together.first():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror or error}): choose another --workdir"
            ) from None
    # Only now is it there.
    together.share(None)
    line = (
        f"{folder} is not the same folder on all hosts ({{hosts}} cannot see what the first one writes): give a folder "
        "on a disk that they share, or gs://BUCKET/FOLDER, as --workdir"
    )
    together.all_well(file.exists(), line)
    if together.first():
        file.unlink(missing_ok=True)
