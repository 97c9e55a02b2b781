"""`mrcnn export`."""

from pathlib import Path

from mrcnn_jax.checkpoints import exporting
from mrcnn_jax.checkpoints.stablehlo import export_stablehlo
from mrcnn_jax.errors import UserError
from mrcnn_jax.model import load
from mrcnn_jax.object_store import AnyPath


def run(checkpoint: AnyPath, kind: str, out: Path, image_size: tuple[int, int] | None, batch_size: int | None) -> None:
    """Write a checkpoint in the form that other programs load.

    Args:
        checkpoint: a run's folder or a checkpoint.
        kind: 'torchvision', 'detectron2', 'safetensors' or 'stablehlo'.
        out: the file to write.
        image_size: height and width of the images that a StableHLO artefact takes.
        batch_size: how many at a time; None is any number.

    Raises:
        UserError: there is no such checkpoint, the format has no such model, or the file cannot be written.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder: name the file to write, as --out={out / 'model'}")
    height, width = image_size or (0, 0)
    if kind == "stablehlo" and not image_size:
        raise UserError(
            "a StableHLO artefact takes images of one size: name it, as --image-size=480x640 (height x width)"
        )
    model = load(checkpoint)
    if kind == "torchvision":
        notes = exporting.export_torchvision(out, model.params, model.config)
    elif kind == "detectron2":
        notes = exporting.export_detectron2(out, model.params, model.config)
    elif kind == "stablehlo":
        export_stablehlo(out, model.params, model.config, height=height, width=width, batch_size=batch_size)
        notes = [
            "it runs where only jax and flatbuffers are installed; docs/checkpoints.md has the ten lines that it takes"
        ]
    else:
        notes = exporting.export_safetensors(out, model.params, model.config, model.categories)
    for note in notes:
        print(f"note: {note}")
    print(f"{kind}: {out} ({out.stat().st_size / 2**20:.0f} MiB)")
