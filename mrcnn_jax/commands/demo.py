"""`mrcnn demo`: train on drawn shapes, score, and draw what was found."""

from ml_collections import ConfigDict

from mrcnn_jax.commands import train
from mrcnn_jax.data import sources
from mrcnn_jax.model import load
from mrcnn_jax.object_store import AnyPath
from mrcnn_jax.run_folder import RunFolder
from mrcnn_jax.visualize import draw, save, sheet, truth

NUM_DRAWN = 12


def run(config: ConfigDict, workdir: AnyPath) -> None:
    """Everything ends up in `workdir`: metrics.json, curves.png, predictions.png, checkpoints.

    The last line is the result.
    """
    figures = train.run(config, workdir)
    dataset, _ = sources.load(config, "val")
    model = load(workdir)
    records = [dataset.records[i] for i in range(min(NUM_DRAWN, len(dataset.records)))]
    images = [record.image() for record in records]
    given = [(record.proposals.boxes, record.proposals.scores) for record in records if record.proposals is not None]
    pairs = []
    for record, image, found in zip(records, images, model.predict(images, given or None), strict=True):
        pairs += [draw(image, truth(record), model.classes), draw(image, found, model.classes)]
    with RunFolder(workdir) as folder:
        picture = sheet(pairs, columns=6, captions=["annotated", "predicted"] * len(records))
        save(picture, folder.local / "predictions.png")
    num_images = (
        len(dataset.records) if not config.eval.num_images else min(config.eval.num_images, len(dataset.records))
    )
    print(f"pictures: {workdir / 'predictions.png'} and {workdir / 'curves.png'}")
    kinds = [name.removesuffix("/AP") for name in figures if name.endswith("/AP")]
    shown = "  ".join(f"{kind} AP {figures[f'{kind}/AP']:.3f}" for kind in kinds)
    print(f"demo: {shown}  images {num_images}  training {figures['minutes']:.1f} min")
