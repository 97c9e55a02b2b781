"""Mask R-CNN, ResNet-50-FPN, COCO, 200 epochs of large-scale jitter (Ghiasi et al., 2021; Detectron2 `200ep_LSJ`).

From random weights, in batches of 64 crops of 1024 x 1024 pixels. BatchNorm is synchronised everywhere, the box head
has 4 convolutions and 1 FC, and the RPN has two convolutions.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo

PUBLISHED = {"box AP": 46.3, "mask AP": 41.7}
SOURCE = "Detectron2 model zoo, 42047638"


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("detectron2/mask_rcnn_r50_fpn_lsj_200ep", zoo.lsj(zoo.mask_rcnn(50)))
    config = base.large_scale_jitter(config, epochs=200)
    return base.finish(config, mode)
