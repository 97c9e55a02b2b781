"""Test-time augmentation: an image at several sizes, each also mirrored, and what was found in all of them merged.

After Detectron2's `GeneralizedRCNNWithTTA`. Boxes are found in every variant and brought to the pixels of the file,
where those of one class suppress each other as a model's own do; masks are then predicted in every variant, for the
boxes that are left, and averaged.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, vmap
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from mrcnn_jax.data import pipeline
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.errors import UserError
from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops.nms import nms, top_k_valid
from mrcnn_jax.types import Batch, Detections, Leaf


@dataclass(frozen=True)
class Variant:
    """A batch of images at one size; every variant has the same images in the same rows."""

    batch: Batch
    mirrored: bool


def variants(dataset: Dataset, config: ConfigDict, batch_size: int) -> Iterator[list[Variant]]:
    """Every image once, in each short side of `config.eval.augment`, upright and mirrored.

    The longest side that is allowed, and the buckets, grow with the short side. Images are dealt out to batches as for
    the model's own size, so that all variants of a batch hold the same.
    """
    rules = config.model.preprocess
    members = pipeline.bucket_members(dataset, config, rules.short_side, rules.max_size, keep_empty=True)
    loaders = []
    for short_side in config.eval.augment:
        factor = short_side / rules.short_side
        own = config.copy_and_resolve_references().unlock()
        own.model.preprocess.update({"short_side": short_side, "max_size": round(rules.max_size * factor)})
        own.data.buckets = tuple(tuple(-(-round(side * factor) // 32) * 32 for side in b) for b in config.data.buckets)
        loaders.append(
            pipeline.eval_loader(dataset, own, batch_size, jax.process_index(), jax.process_count(), members)
        )
    with ExitStack() as stack:
        for loader in loaders:
            stack.enter_context(closing(loader))
        for batches in zip(*loaders, strict=True):
            yield [one for batch in batches for one in (Variant(batch, False), Variant(_mirror(batch), True))]


def _mirror(batch: Batch) -> Batch:
    """The images turned left to right, inside their own size."""
    image = np.zeros_like(batch.image)
    for row, (height, width) in enumerate(np.asarray(batch.size)):
        image[row, :height, :width] = np.asarray(batch.image)[row, :height, :width][:, ::-1]
    return batch.replace(image=image)


def detect(
    find: Callable[[Batch], Detections],
    describe: Callable[[Batch, Detections], Detections],
    variants: Sequence[Variant],
    *,
    nms_threshold: float,
    max_detections: int,
) -> Detections:
    """The detections of a batch of images, in pixels of their files (and so with `original_size` as their size).

    Args:
        find: the boxes of a batch, in its pixels; what else it finds is not read.
        describe: adds to boxes in a batch's pixels what a model tells of them: masks.
        variants: one or more.
        nms_threshold, max_detections: as the model has them.

    Raises:
        UserError: the model describes keypoints, for which Detectron2 has no rule either.
    """
    found = [to_file(find(variant.batch), variant) for variant in variants]
    merged = merge(found, variants[0].batch.original_size, nms_threshold, max_detections)
    described = [describe(variant.batch, to_variant(merged, variant)) for variant in variants]
    if any(one.keypoints is not None for one in described):
        raise UserError("test-time augmentation is for boxes and masks: switch it off for a model with keypoints")
    if any(one.masks is None for one in described):
        return merged
    return merged.replace(masks=mean_masks([one.masks for one in described], [v.mirrored for v in variants]))


def to_file(detections: Detections, variant: Variant) -> Detections:
    """Detections in a variant's pixels, in those of the files; boxes alone, without masks and keypoints."""
    boxes = jnp.asarray(detections.boxes)
    if variant.mirrored:
        boxes = _mirrored(boxes, variant.batch)
    return Detections(boxes / _scale(variant.batch), detections.scores, detections.classes, detections.valid)


def to_variant(detections: Detections, variant: Variant) -> Detections:
    """Detections in the files' pixels, in those of a variant: the inverse of `to_file`."""
    boxes = jnp.asarray(detections.boxes) * _scale(variant.batch)
    return detections.replace(boxes=_mirrored(boxes, variant.batch) if variant.mirrored else boxes)


@partial(jax.jit, static_argnames=("nms_threshold", "max_detections"))
def merge(
    found: Sequence[Detections], original_size: Int[Leaf, "b 2"], nms_threshold: float, max_detections: int
) -> Detections:
    """The best of several sets of detections of the same images: clipped, suppressed a class at a time.

    In a tie the earlier set is first.
    """

    def of_one_image(
        boxes: Float[Array, "n 4"],
        scores: Float[Array, " n"],
        classes: Int[Array, " n"],
        valid: Bool[Array, " n"],
        size: Float[Array, " 2"],
    ) -> Detections:
        boxes = box_ops.clip(boxes, size)
        keep = nms(boxes, scores, valid, nms_threshold, classes)
        best, valid = top_k_valid(scores, keep, max_detections)
        return Detections(boxes[best], scores[best], classes[best], valid)

    fields = ("boxes", "scores", "classes", "valid")
    columns = (jnp.concatenate([jnp.asarray(getattr(one, field)) for one in found], axis=1) for field in fields)
    return vmap(of_one_image)(*columns, jnp.asarray(original_size, jnp.float32))


def mean_masks(masks: Sequence[Float[Leaf, "b d m m"]], mirrored: Sequence[bool]) -> Float[Array, "b d m m"]:
    """The mean of the masks that variants gave of the same boxes, each turned back first."""
    upright = [mask[..., ::-1] if flip else mask for mask, flip in zip(masks, mirrored, strict=True)]
    return jnp.mean(jnp.stack(upright), axis=0)


def _scale(batch: Batch) -> Float[Array, "b 1 4"]:
    """Pixels of the batch in one of the file, for x, y, x, y."""
    ratio = jnp.asarray(batch.size, jnp.float32) / jnp.asarray(batch.original_size, jnp.float32)
    return jnp.tile(ratio[:, ::-1], 2)[:, None]


def _mirrored(boxes: Float[Array, "b d 4"], batch: Batch) -> Float[Array, "b d 4"]:
    """x becomes width - x, and the right edge the left one."""
    width = jnp.asarray(batch.size, jnp.float32)[:, 1, None]
    return jnp.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], axis=-1)
