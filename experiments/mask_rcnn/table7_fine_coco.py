"""Mask R-CNN, ResNet-50-FPN, Cityscapes, fine annotations, from COCO (He et al., 2017, table 7).

Start from table2a_r50_fpn.py's run: name it with --config.train.init. The data set's JSON files are made by
scripts/cityscapes_to_coco.py. Rider is a class that COCO lacks, and starts at random.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.recipes import mask_rcnn
from mrcnn_jax.models import zoo

PUBLISHED = {"mask AP": 36.4, "mask AP (test)": 32.0, "mask AP50 (test)": 58.1}
SOURCE = "Mask R-CNN paper, table 7"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("mask_rcnn/table7_fine_coco", zoo.mask_rcnn(50))
    config = mask_rcnn.cityscapes(config, steps=4_000, drop=3_000)
    return base.finish(config, mode)
