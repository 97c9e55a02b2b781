"""Fine-tune Mask R-CNN R50-FPN on your own folder of images with a COCO instances JSON.

Name the weights to start from with --config.train.init=CHECKPOINT; without it they are random. The class count and
names come from the JSON. Image and annotation files are looked for under --config.data.root; name them with
--config.data.train_annotations and so on where they have unusual names. The learning rate follows
--config.train.batch_size. What AP it gives depends on your data: none is promised.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {}
SOURCE = "no paper"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("finetune", zoo.mask_rcnn(depth=50))
    config.train.update({"batch_size": 2, "steps": 5000, "eval_every": 1000, "save_every": 1000})
    config.optimizer.update({"milestones": (3500, 4500), "warmup_steps": 500})
    return base.finish(config, mode)
