"""A model small enough to compile in seconds, and batches for it."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mrcnn_jax.models import zoo
from mrcnn_jax.models.rcnn import RCNN
from mrcnn_jax.types import Batch, GroundTruth

NUM_CLASSES = 3


def model_config() -> ConfigDict:
    """Mask R-CNN in every part, with few channels and RoIs."""
    config = zoo.mask_rcnn(depth=10)
    config.num_classes = NUM_CLASSES
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.backbone.update({"width": 8, "norm": "gn", "frozen_stages": 0})
    config.fpn.channels = 16
    config.rpn.update({
        "channels": 16, "sizes": ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,)), "num_samples": 32,
        "pre_nms": (32, 32), "post_nms": (24, 24),
    })  # fmt: skip
    config.roi.update({"num_samples": 16, "canonical_size": 56.0, "sampling_ratio": 2})
    config.box.update({"fc_dims": (16, 16), "num_candidates": 40, "max_detections": 10, "score_threshold": 0.0})
    config.mask.update({"num_convs": 1, "dim": 8})
    return config


def variables(model: RCNN, seed: int = 0) -> dict:
    """Random variables of the right shapes, without compiling `init`."""
    rng = np.random.default_rng(seed)

    def fill(path, x):
        kind = path[-1].key
        if kind == "num_batches":
            return np.zeros(x.shape, np.int32)
        if kind in ("scale", "var"):
            return rng.uniform(0.8, 1.2, x.shape).astype(np.float32)
        spread = 1.4 / np.sqrt(max(np.prod(x.shape[:-1]), 1)) if kind == "kernel" else 0.1
        return rng.normal(0, spread, x.shape).astype(np.float32)

    shapes = jax.eval_shape(lambda key: model.init(key, batch(), method="touch"), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def ground_truth(rng: np.random.Generator, num_images: int, num_slots: int, num_objects: int, side: int) -> GroundTruth:
    """Random boxes with full masks in the first `num_objects` slots.

    The last of them is a crowd where there are over two.
    """
    corner = rng.uniform(0, side * 0.6, (num_images, num_slots, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, side * 0.4, corner.shape)], axis=-1).astype(np.float32)
    valid = np.broadcast_to(np.arange(num_slots) < num_objects, (num_images, num_slots)).copy()
    crowd = np.zeros_like(valid)
    if num_objects > 2:
        crowd[:, num_objects - 1] = True
    return GroundTruth(
        boxes=np.where(valid[..., None], boxes, 0).astype(np.float32),
        classes=np.where(valid, rng.integers(1, NUM_CLASSES + 1, valid.shape), 0).astype(np.int32),
        valid=valid,
        crowd=crowd,
        masks=rng.integers(0, 256, (num_images, num_slots, 112, 14)).astype(np.uint8),
        has_mask=valid.copy(),
    )


def batch(
    seed: int = 0, num_images: int = 2, side: int = 64, num_slots: int = 6, num_objects: int = 4, first_id: int = 1
) -> Batch:
    """Noise with random objects; every image fills its shape."""
    rng = np.random.default_rng(seed)
    size = np.full((num_images, 2), side, np.int32)
    return Batch(
        image=rng.integers(0, 256, (num_images, side, side, 3)).astype(np.uint8),
        size=size,
        original_size=size.copy(),
        image_id=np.arange(first_id, first_id + num_images, dtype=np.int32),
        valid=np.ones(num_images, bool),
        gt=ground_truth(rng, num_images, num_slots, num_objects, side),
        num_dropped=np.zeros(num_images, np.int32),
    )


def loss_and_gradient(model: RCNN, key: jax.Array):
    """A compiled function of variables and a batch: the sum of the mean losses, the losses, and the gradient."""

    def total(params, stats, batch):
        (losses, _), _ = model.apply(
            {"params": params, "batch_stats": stats}, batch, key, method="losses", mutable=["batch_stats"]
        )
        return sum(total / jnp.maximum(weight, 1.0) for total, weight in losses.values()), losses

    grad = jax.jit(jax.value_and_grad(total, has_aux=True))
    return lambda variables, batch: jax.device_get(grad(variables["params"], variables.get("batch_stats", {}), batch))
