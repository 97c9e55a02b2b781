"""`mrcnn train`."""

from pathlib import Path

from ml_collections import ConfigDict

from mrcnn_jax import distributed
from mrcnn_jax.train import train
from mrcnn_jax.visualize import curves


def run(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Train, evaluate at the end, and draw the curves. Called again, it goes on where it stopped."""
    distributed.split_cpu(config.train.cpu_devices)
    figures = train(config, workdir)
    curves(workdir / "metrics.csv", workdir / "curves.png")
    return figures
