"""Pascal VOC with the schedules of Girshick's code: what R-CNN, Fast R-CNN and Faster R-CNN share."""

from ml_collections import ConfigDict


def voc07(config: ConfigDict) -> ConfigDict:
    """Train on VOC2007's trainval, score on its test by the 11-point AP; images with a short side of 600.

    `config.data.root` is VOCdevkit, which holds VOC2007.
    """
    config.data.update({
        "kind": "voc", "train_annotations": "VOC2007/trainval", "val_annotations": "VOC2007/test", "mask_size": 0,
        "short_sides": (600,), "max_size": 1000, "buckets": ((608, 1008), (1008, 608)),
        "num_proposals": (2000, 2000),
    })  # fmt: skip
    config.eval.metric = "voc07"
    return config


def voc0712(config: ConfigDict) -> ConfigDict:
    """The same, trained on VOC2012's trainval too, whose images VOC2007's test does not share."""
    config = voc07(config)
    config.data.train_annotations = "VOC2007/trainval,VOC2012/trainval"
    return config


def girshick_sgd(config: ConfigDict, steps: int, drops: tuple[int, ...], batch_size: int = 2) -> ConfigDict:
    """SGD as in Girshick's solver files: rate 0.001, a tenth from each drop on, weight decay 0.0005, no warm-up."""
    config.train.update({"batch_size": batch_size, "steps": steps})
    config.optimizer.update({
        "learning_rate": 1e-3, "base_batch_size": batch_size, "weight_decay": 5e-4, "warmup_steps": 0,
        "milestones": drops,
    })  # fmt: skip
    return config


def rcnn(config: ConfigDict, regressors: bool) -> ConfigDict:
    """R-CNN's three stages on VOC2007: 70,000 steps of fine-tuning, SVMs, and with `regressors` box regressors.

    As in the solver file and `rcnn_train.m` of its code. Images keep about their own size, since each region is warped.
    """
    config = girshick_sgd(voc07(config), steps=70_000, drops=(20_000, 40_000, 60_000), batch_size=16)
    config.data.update({
        "short_sides": (375,), "max_size": 500, "buckets": ((384, 512), (512, 384)), "use_difficult": True,
    })  # fmt: skip
    config.svm.update({"fit": True, "regressors": regressors})
    # Thousands of regions of an image pass the network one by one.
    config.eval.batch_size = 1
    return config


def fast_rcnn_voc07(config: ConfigDict) -> ConfigDict:
    """Fast R-CNN on VOC2007, difficult objects included: 40,000 steps of two images (section 2.3)."""
    config = girshick_sgd(voc07(config), steps=40_000, drops=(30_000,))
    config.data.use_difficult = True
    return config


def fast_rcnn_voc0712(config: ConfigDict) -> ConfigDict:
    """Fast R-CNN on VOC2007 and VOC2012: 60,000 steps of two images (section 5.3)."""
    config = girshick_sgd(voc0712(config), steps=60_000, drops=(30_000,))
    config.data.use_difficult = True
    return config
