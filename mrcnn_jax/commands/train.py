"""`mrcnn train`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mrcnn_jax import distributed
from mrcnn_jax.errors import UserError
from mrcnn_jax.hosts import together
from mrcnn_jax.object_store import AnyPath
from mrcnn_jax.run_folder import RunFolder
from mrcnn_jax.train import train
from mrcnn_jax.visualize import curves


def run(config: ConfigDict, workdir: AnyPath) -> dict[str, float]:
    """Train, evaluate at the end, and draw the curves. Called again, it goes on where it stopped."""
    distributed.split_cpu(config.train.cpu_devices)
    figures = _stages(config, workdir)(config, workdir)
    with RunFolder(workdir) as folder:
        for metrics in sorted(folder.local.glob("**/metrics.csv")) if together.first() else ():
            curves(metrics, metrics.parent / "curves.png")
    return figures


def _stages(config: ConfigDict, workdir: AnyPath) -> Callable[[ConfigDict, Any], dict[str, float]]:
    if config.svm.fit and config.alternating:
        raise UserError("config.svm.fit and config.alternating are two ways to train: set one of them to False")
    if together.several() and (config.svm.fit or config.alternating):
        raise UserError("config.svm.fit and config.alternating are for one host: run the command on one of them alone")
    if (config.svm.fit or config.alternating) and not isinstance(workdir, Path):
        raise UserError(f"{workdir}: config.svm.fit and config.alternating write to disks only: give a folder of one")
    if config.svm.fit:
        from mrcnn_jax.fitting.stages import train_with_svms

        return train_with_svms
    if config.alternating:
        from mrcnn_jax.alternating import train_alternating

        return train_alternating
    return train
