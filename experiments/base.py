"""What experiments are composed of: plain functions that take a config and return it changed."""

from ml_collections import ConfigDict

SHORT_SIDES = (640, 672, 704, 736, 768, 800)
COCO_IMAGES = 117_266  # train2017 images that hold an object


def experiment(name: str, model: ConfigDict) -> ConfigDict:
    """A whole experiment with every key that there is, set to Detectron2's 1x recipe for a batch of 16."""
    config = ConfigDict()
    config.name = name
    config.seed = 0
    config.model = model
    # Keys of `model` set on the command line, which weights to start from then do not change.
    config.model_overrides = ()
    config.data = ConfigDict({
        # 'coco': a folder of images and a COCO JSON; 'voc': a VOCdevkit or one folder of VOC's form; 'tfds': a folder
        # written by `tfds_builders`; 'shapes': drawn on the fly.
        "kind": "coco",
        "root": "",
        # Relative to root; left empty, they are looked for. For 'voc' annotations are image sets, of folders below root
        # ("VOC2007/trainval,VOC2012/trainval") or of root itself ("train"), and images stay empty.
        "train_images": "", "train_annotations": "", "val_images": "", "val_annotations": "",
        # For models without an RPN: files of proposals, relative to root, and how many of an image's are used for
        # training and for inference.
        "train_proposals": "", "val_proposals": "", "num_proposals": (2000, 1000),
        "short_sides": SHORT_SIDES, "max_size": 1333, "buckets": ((800, 1344), (1344, 800)), "flip": 0.5,
        # Large-scale jitter: (smallest, largest) scale of a square bucket; None is none.
        "jitter": None,
        # Whether to train on objects that VOC marks as difficult.
        "use_difficult": False,
        "max_objects": 100, "mask_size": 112, "keypoints": False, "keep_empty": False, "num_workers": 4,
        # Only for 'shapes': how many images, how large, up to how many objects of which share of the image's size, of
        # how many classes, how much of each has to be seen, how clearly they stand out, how much there is of no class.
        "num_train": 10_000, "num_val": 400, "size": (128, 128), "scale": (0.1, 0.7), "drawn_objects": 8,
        "drawn_classes": 8, "min_visible": 0.2, "contrast": 4, "clutter": 4,
    })  # fmt: skip
    config.train = ConfigDict({
        "batch_size": 16, "steps": 90_000, "accumulate": 1, "ema": 0.0, "log_every": 20, "eval_every": 10_000,
        "save_every": 5_000, "keep_last": 2,
        # The ids of every batch's images are written to WORKDIR/images.
        "log_images": False,
        # A run in which nothing happens for so long ends itself and shows where it stood.
        "stall_minutes": 30.0,
        # Each device keeps and updates a part of the optimiser's state, instead of all of it.
        "shard_optimizer": False,
        # As how many devices a CPU counts: its cores then work side by side.
        "cpu_devices": 1,
        # Weights to start from: a run's folder, a checkpoint, or a ResNet in an .npz. Empty: random.
        "init": "",
    })  # fmt: skip
    config.optimizer = ConfigDict({
        "name": "sgd", "learning_rate": 0.02, "base_batch_size": 16, "momentum": 0.9, "weight_decay": 1e-4,
        "schedule": "step", "milestones": (60_000, 80_000), "warmup_steps": 1000, "warmup_factor": 1e-3,
        "clip_norm": 0.0, "freeze": (),
    })  # fmt: skip
    # R-CNN: SVMs in place of the softmax, and box regressors, both fitted to the features of the trained network.
    config.svm = ConfigDict({
        "fit": False, "regressors": True, "c": 1e-3, "positive_weight": 2.0, "negative_iou": 0.3,
        "regularisation": 1000.0, "min_iou": 0.6,
    })  # fmt: skip
    # Faster R-CNN in four steps, instead of RPN and boxes together.
    config.alternating = False
    config.eval = ConfigDict({
        # 'coco': COCO's figures; 'voc07' and 'voc12': VOC's AP of boxes, sampled at 11 points as in 2007 or the area as
        # from 2010 on, which count difficult objects neither way ('coco' counts them as any other).
        "metric": "coco",
        "batch_size": 8, "num_workers": 2, "backend": "hotcoco", "num_images": 0,
        # Test-time augmentation: short sides, in pixels, at which an image and its mirror image are looked at; () is
        # none.
        "augment": (),
    })  # fmt: skip
    return config


def schedule(config: ConfigDict, epochs_of_12: int) -> ConfigDict:
    """Detectron2's 1x, 2x, 3x, ...: 90,000 steps of 16 images a unit.

    The rate is divided by 10 for the last 30,000 steps and again for the last 10,000; beyond 1x, for the last 60,000
    and 20,000.
    """
    steps = 90_000 * epochs_of_12
    config.train.steps = steps
    config.optimizer.milestones = (steps - 60_000, steps - 20_000) if epochs_of_12 > 1 else (60_000, 80_000)
    return config


def large_scale_jitter(config: ConfigDict, epochs: int) -> ConfigDict:
    """Training from scratch on 1024 x 1024 crops at 0.1 to 2 times the size, in batches of 64.

    After Ghiasi et al., "Copy-Paste", 2021.
    """
    config.data.update({"jitter": (0.1, 2.0), "buckets": ((1024, 1024),), "short_sides": (1024,), "max_size": 1024})
    config.model.preprocess.update({"short_side": 1024, "max_size": 1024})
    steps = epochs * COCO_IMAGES // 64
    config.train.update({"batch_size": 64, "steps": steps, "eval_every": steps // 20})
    config.optimizer.update({
        "learning_rate": 0.1, "base_batch_size": 64, "weight_decay": 4e-5, "warmup_steps": 500, "warmup_factor": 0.067,
        "milestones": (int(0.889 * steps), int(0.963 * steps)),
    })  # fmt: skip
    return config


def few_shapes(config: ConfigDict, steps: int) -> ConfigDict:
    """1,000 drawn images to train on, 200 to validate: 96 x 96 pixels, 8 classes told apart by shape alone.

    Few enough for selective search. Networks start at random; Adam, since they are trained for minutes.
    """
    config.model.num_classes = 8
    config.model.preprocess.update({
        "short_side": 96, "max_size": 96, "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375),
        "bgr": False,
    })  # fmt: skip
    config.data.update({
        "kind": "shapes", "num_train": 1000, "num_val": 200, "size": (96, 96), "scale": (0.25, 0.8),
        "drawn_objects": 4, "min_visible": 0.35, "contrast": 8, "clutter": 0, "short_sides": (96,), "max_size": 96,
        "buckets": ((96, 96),), "max_objects": 16, "keep_empty": True, "num_workers": 0, "num_proposals": (500, 500),
    })  # fmt: skip
    config.train.update({
        "batch_size": 8, "steps": steps, "eval_every": steps, "save_every": 200, "cpu_devices": 2
    })  # fmt: skip
    config.optimizer.update({
        "name": "adamw", "base_batch_size": 8, "weight_decay": 0.05, "schedule": "cosine", "warmup_steps": 100,
        "clip_norm": 10.0, "learning_rate": 1e-3,
    })  # fmt: skip
    config.eval.update({"batch_size": 8, "num_workers": 0})
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """The same network for three steps on a handful of small drawn images: does it run at all?

    Its weights are random, so norms that would be frozen are group norms instead.
    """
    config.name += "_smoke"
    config.data.update({
        "kind": "shapes", "num_train": 8, "num_val": 4, "size": (128, 128), "short_sides": (128,), "max_size": 128,
        "buckets": ((128, 128),), "jitter": None, "max_objects": 16, "num_workers": 0,
        "train_images": "", "train_annotations": "", "val_images": "", "val_annotations": "",
        "train_proposals": "", "val_proposals": "", "num_proposals": (100, 50),
    })  # fmt: skip
    model = config.model
    if model.rpn is not None:
        model.rpn.update({"pre_nms": (200, 100), "post_nms": (100, 50)})
    model.roi.num_samples = min(model.roi.num_samples, 32)
    if model.backbone is None:
        # R-CNN: each region passes a whole network.
        model.roi.num_samples = 8
        config.data.num_proposals = (20, 10)
    if model.box is not None:
        model.box.update({"max_detections": 20, "num_candidates": 200})
    model.preprocess.update({"short_side": 128, "max_size": 128})
    if model.backbone is not None and model.backbone.get("norm") == "frozen_bn":
        # With random weights and norms that do nothing, maps grow from block to block until nothing is finite.
        model.backbone.norm = "gn"
    config.train.update({"batch_size": 2, "steps": 3, "log_every": 1, "eval_every": 3, "save_every": 3, "init": ""})
    config.optimizer.update({"warmup_steps": 1, "milestones": (2,), "clip_norm": 1.0})
    config.eval.update({"metric": "coco", "batch_size": 2, "num_workers": 0})
    if config.eval.augment:
        config.eval.augment = (96, 128)
    return config


def finish(config: ConfigDict, mode: str) -> ConfigDict:
    """Apply the mode: '' is the experiment itself, 'smoke' its three steps."""
    if mode not in ("", "smoke"):
        raise ValueError(f"unknown mode '{mode}': there is '' and 'smoke'")
    config = smoke(config) if mode == "smoke" else config
    return config.lock()
