"""Faster R-CNN, ResNet-50-C4, VOC2007 and VOC2012 (Detectron2 `PascalVOC-Detection/faster_rcnn_R_50_C4`).

Start from an ImageNet ResNet-50 (MSRA): name it with --config.train.init.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import voc
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 51.9, "box AP50": 80.3}
SOURCE = "Detectron2 model zoo, 142202221"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/faster_rcnn_r50_c4_voc0712", zoo.c4(zoo.faster_rcnn(50)))
    config.model.num_classes = 20
    config = voc.voc0712(config)
    config.data.update({
        "short_sides": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800), "max_size": 1333,
        "buckets": ((800, 1344), (1344, 800)),
    })  # fmt: skip
    config.train.update({"steps": 18_000, "eval_every": 6_000})
    config.optimizer.update({"milestones": (12_000, 16_000), "warmup_steps": 100})
    return base.finish(config, mode)
