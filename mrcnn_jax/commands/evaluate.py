"""`mrcnn eval`."""

from pathlib import Path

from ml_collections import ConfigDict

from mrcnn_jax import distributed
from mrcnn_jax.checkpoints.importing import import_weights
from mrcnn_jax.checkpoints.metadata import categories_from, config_from_dict
from mrcnn_jax.checkpoints.params import load_params
from mrcnn_jax.data import sources
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.results import write_json
from mrcnn_jax.evaluation.run import Evaluator
from mrcnn_jax.hosts import agreement, together
from mrcnn_jax.models.build import build
from mrcnn_jax.object_store import AnyPath
from mrcnn_jax.run_folder import RunFolder


def run(config: ConfigDict | None, workdir: AnyPath | None, checkpoint: AnyPath | None, json_path: Path | None) -> None:
    """Score the weights in `checkpoint` (or the best of `workdir`) on the validation images of `config`.

    Without `config` they are those of the weights' own run. The architecture and the preprocessing are always those
    that the weights came with, which may be a file of torchvision's or Detectron2's.

    Raises:
        UserError: there is no such checkpoint, the data cannot be used, or its classes are not those of the weights.
    """
    path = checkpoint or workdir or Path()
    if isinstance(path, Path) and path.is_file():
        if config is None:
            raise UserError(f"{path} says nothing of images to score it on: name an experiment with --config")
        weights = import_weights(path)
        experiment, model = config, weights.config
        categories, variables = weights.categories or (), weights.variables()
    else:
        params, batch_stats, metadata = load_params(path)
        trained = config_from_dict(metadata["config"])
        if config is None and "data" not in trained:
            raise UserError(f"{path} was imported and says nothing of images to score it on: name them with --config")
        experiment = trained if config is None else config
        model, categories = trained.model, categories_from(metadata)
        variables = {"params": params, "batch_stats": batch_stats}
    with experiment.unlocked():
        experiment.model = model
    dataset, lines = sources.load(experiment, "val", categories)
    print("\n".join(lines), end="\n" if lines else "")
    if dataset.classes != tuple(category.name for category in categories):
        raise UserError(
            f"{path} knows the classes {_some(c.name for c in categories)}, the data set has {_some(dataset.classes)}: "
            "score it on the classes that it was trained on"
        )
    distributed.check_devices()
    agreement.same_data(experiment.data.root, validation=dataset)
    agreement.same_weights(variables, model)
    mesh = distributed.make_mesh()
    variables = distributed.replicate(variables, mesh)
    evaluator = Evaluator(build(model), dataset, experiment, mesh)
    if workdir is None:
        metrics = evaluator(variables)
    else:
        with RunFolder(workdir) as folder:
            metrics = evaluator(variables, out_dir=folder.local)
    for kind, figures in metrics.items():
        print(f"{kind}\n{figures.table()}")
    if json_path and together.first():
        write_json({kind: figures.to_dict() for kind, figures in metrics.items()}, json_path)


def _some(names) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
