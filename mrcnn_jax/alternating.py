"""Faster R-CNN's four-step alternating training (Ren et al., 2015, section 3.2), which shares the backbone at the end.

1 RPN   2 Fast R-CNN on its proposals   3 RPN on the backbone of 2   4 Fast R-CNN on that backbone, kept as it is
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from mrcnn_jax.checkpoints.metadata import categories_from, config_from_dict, describe
from mrcnn_jax.checkpoints.params import load_params, save_params
from mrcnn_jax.commands import propose
from mrcnn_jax.data import sources
from mrcnn_jax.evaluation.run import score_detector
from mrcnn_jax.models import zoo
from mrcnn_jax.train import train

# The checkpoint of the whole detector, in the run's folder.
FOLDER = "detector"


def train_alternating(config: ConfigDict, workdir: Path, *, log: Callable[[str], None] = print) -> dict[str, float]:
    """Train a Faster R-CNN in four steps, each a run in a folder of its own, and join them in `workdir/detector`.

    Each step is `train` with other parts, from `config.train.init` (steps 1 and 2) or from step 2, and goes on where it
    stopped; files of proposals are not made again.

    Returns:
        The detector's figures, and the `minutes` of training.

    Raises:
        UserError, Interrupted: as `train` and `mrcnn propose` do.
    """
    folders = [workdir / name for name in ("1_rpn", "2_fast_rcnn", "3_rpn", "4_fast_rcnn")]
    rpn_1, fast_2, rpn_3, fast_4 = folders
    minutes = [
        train(_rpn_step(config), rpn_1, log=log)["minutes"],
        train(_fast_step(config, _proposals(config, rpn_1)), fast_2, log=log)["minutes"],
        train(_on_shared(_rpn_step(config), fast_2), rpn_3, log=log)["minutes"],
        train(_on_shared(_fast_step(config, _proposals(config, rpn_3)), fast_2), fast_4, log=log)["minutes"],
    ]
    (params, batch_stats, metadata), (rpn_params, _, _) = load_params(fast_4), load_params(rpn_3)
    params["rpn"] = rpn_params["rpn"]
    joined = config_from_dict(metadata["config"])
    with joined.unlocked():
        joined.data = config.data
        joined.model.rpn = config.model.rpn
    if not (workdir / FOLDER).exists():
        save_params(workdir / FOLDER, params, batch_stats, describe(joined, categories_from(metadata)))
    val_data, _ = sources.load(config, "val", categories_from(metadata))
    variables = {"params": params, "batch_stats": batch_stats}
    found = score_detector(variables, joined, val_data, workdir / FOLDER, name="joined", log=log)
    return found | {"minutes": sum(minutes)}


def _rpn_step(config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references().unlock()
    config.model = zoo.rpn(config.model)
    return config.lock()


def _fast_step(config: ConfigDict, proposals: dict[str, str]) -> ConfigDict:
    config = config.copy_and_resolve_references().unlock()
    config.model.rpn = None
    config.data.update(proposals)
    return config.lock()


def _on_shared(config: ConfigDict, source: Path) -> ConfigDict:
    """The step that starts from another run and leaves its backbone as it is."""
    config = config.unlock()
    config.train.init = str(source.absolute())
    # The RPN that the other step did without.
    config.model_overrides = (*config.model_overrides, "rpn")
    config.optimizer.freeze = (*config.optimizer.freeze, "backbone")
    return config.lock()


def _proposals(config: ConfigDict, run: Path) -> dict[str, str]:
    """Files of the proposals that a run's RPN makes for training and validation images, as keys of `config.data`."""
    files = {}
    for split in ("train", "val"):
        files[f"{split}_proposals"] = str((run / f"{split}_proposals.pkl").absolute())
        if not Path(files[f"{split}_proposals"]).exists():
            propose.run(config, split, None, "rpn", run, Path(files[f"{split}_proposals"]), None, 0, None)
    return files
