"""Keypoint R-CNN, ResNet-50-FPN, COCO persons, 1x schedule (He et al. 2017; Detectron2 `keypoint_rcnn_R_50_FPN_1x`).

    mrcnn train --config=experiments/keypoint_rcnn_r50_fpn_1x_coco.py --config.data.root=COCO --workdir=runs/keypoint_1x

Not trained here yet. Detectron2 reports 53.6 box AP and 64.0 keypoint AP on val2017 after 90,000 steps of 16 images,
starting from an ImageNet ResNet-50 (MSRA): name one with --config.train.init. Images without a labelled keypoint are
left out of training.
"""

from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax.models import zoo


def get_config(mode: str = "") -> ConfigDict:
    """Mode '' or 'smoke'."""
    config = base.experiment("keypoint_rcnn_r50_fpn_1x_coco", zoo.keypoint_rcnn(depth=50))
    config.data.update({
        "train_images": "train2017", "train_annotations": "annotations/person_keypoints_train2017.json",
        "val_images": "val2017", "val_annotations": "annotations/person_keypoints_val2017.json",
        "keypoints": True, "mask_size": 0,
    })  # fmt: skip
    config = base.schedule(config, 1)
    return base.finish(config, mode)
