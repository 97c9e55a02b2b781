"""The experiment that the scripts on several hosts train: Mask R-CNN with few channels, on small drawn shapes."""

from ml_collections import ConfigDict

from experiments import shapes
from mrcnn_jax.models import zoo


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'rpn', which compiles in a third of the time."""
    config = shapes.get_config("smoke").copy_and_resolve_references()
    config.name = "tiny"
    config.model.backbone.update({"depth": 10, "width": 8})
    config.model.fpn.channels = 16
    config.model.rpn.channels = 16
    config.model.box.fc_dims = (16, 16)
    config.model.mask.update({"num_convs": 1, "dim": 8})
    if mode == "rpn":
        config.model = zoo.rpn(config.model)
        config.data.mask_size = 0
    config.model.preprocess.update({"short_side": 64, "max_size": 64})
    config.data.update({
        "num_train": 22, "num_val": 10, "size": (64, 64), "short_sides": (64,), "max_size": 64, "buckets": ((64, 64),),
    })  # fmt: skip
    config.train.update({"batch_size": 4, "steps": 20, "save_every": 5, "eval_every": 20, "log_every": 1})
    # The published recipes' warm-up. With larger updates a rounding soon puts some proposal on the other side of a
    # threshold, from where two runs part that do the same.
    config.optimizer.update({
        "name": "sgd", "learning_rate": 0.02, "weight_decay": 1e-4, "schedule": "step", "milestones": (10_000,),
        "warmup_steps": 1000, "warmup_factor": 1e-3,
    })  # fmt: skip
    config.eval.batch_size = 4
    return config.lock()
