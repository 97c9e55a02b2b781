"""Drawing the anchors and RoIs of one image that a loss is computed on.

Without a key nothing is random: the first in order of index are taken.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Key

from mrcnn_jax.ops.match import Matches, match
from mrcnn_jax.types import GroundTruth, Proposals, Samples


def random_subset(
    key: Key[Array, ""] | None, mask: Bool[Array, " n"], k: int, limit: Int[Array, ""] | None = None
) -> Bool[Array, " n"]:
    """Exactly `min(k, limit, mask.sum())` of the elements of `mask`; all subsets of that size are equally likely.

    `k` is static; `limit`, known only at run time, lowers it. Ties of the (23-bit) random numbers fall to the
    lower index.
    """
    # The barrier keeps the drawing of numbers out of the sort, with which XLA would fuse it for a TPU, and be a minute
    # at it for the anchors of a large image.
    ranks = lax.optimization_barrier(jnp.where(mask, _ranks(key, mask.shape[0]), -1.0))
    _, index = lax.top_k(ranks, min(k, mask.shape[0]))
    taken = mask[index]
    if limit is not None:
        taken = taken & (jnp.arange(index.shape[0]) < limit)
    return jnp.zeros_like(mask).at[index].set(taken)


def sample_anchors(
    key: Key[Array, ""] | None, matches: Matches, num: int = 256, positive_fraction: float = 0.5
) -> tuple[Bool[Array, " n"], Bool[Array, " n"]]:
    """Positives, at most the given fraction, and negatives that fill up to `num` (Faster R-CNN, section 3.1.3)."""
    key_positive, key_negative = (None, None) if key is None else jax.random.split(key)
    positive = random_subset(key_positive, matches.positive, int(num * positive_fraction))
    negative = random_subset(key_negative, matches.negative, num, num - positive.sum())
    return positive, negative


def sample_rois(
    key: Key[Array, ""] | None,
    proposals: Proposals,
    gt: GroundTruth,
    *,
    num: int = 512,
    positive_fraction: float = 0.25,
    iou: float = 0.5,
    low: float = 0.0,
    append_gt: bool = True,
    crowd_ignore: float = 0.5,
) -> Samples:
    """Label the proposals and draw `num` of them, positives first (Fast R-CNN, section 2.3).

    Positive at IoU `iou` and over, background in `[low, iou)`; Fast R-CNN used `low=0.1` to find hard examples, later
    models 0. At most `int(num * positive_fraction)` are positive, so that the heads of positives need only that many
    leading slots. With `append_gt` the objects themselves, crowd regions aside, stand behind the proposals as
    candidates: an untrained RPN then still has positives. Slots without a candidate are not valid, and zero.
    """
    boxes, valid = lax.stop_gradient(proposals.boxes), proposals.valid
    if append_gt:
        boxes = jnp.concatenate([boxes, gt.boxes])
        valid = jnp.concatenate([valid, gt.valid & ~gt.crowd])
    matches = match(boxes, gt, high=iou, low=iou, low_quality=False, boxes_valid=valid, crowd_ignore=crowd_ignore)
    key_positive, key_slot = (None, None) if key is None else jax.random.split(key)
    positive = random_subset(key_positive, matches.positive, int(num * positive_fraction))
    background = matches.negative & (matches.iou >= low)

    ranks = _ranks(key_slot, valid.shape[0])
    ranks = jnp.where(positive, 1.0 + ranks, jnp.where(background, ranks, -1.0))
    rank, slot = lax.top_k(ranks, min(num, valid.shape[0]))
    missing = num - slot.shape[0]
    taken, slot = jnp.pad(rank >= 0.0, (0, missing)), jnp.pad(slot, (0, missing))
    positive = positive[slot] & taken
    index = jnp.where(positive, matches.gt[slot], 0)
    return Samples(
        boxes=jnp.where(taken[:, None], boxes[slot], 0.0),
        gt=index,
        classes=jnp.where(positive, jnp.take(gt.classes, index), 0),
        positive=positive,
        valid=taken,
    )


def label_rois(
    boxes: Float[Array, "s 4"], valid: Bool[Array, " s"], gt: GroundTruth, iou: float | int, crowd_ignore: float = 0.5
) -> Samples:
    """All of these boxes as samples, in the order given: positive at IoU `iou` and over, else background.

    What a later stage of a cascade trains on. A box that lies in a crowd region is not valid.
    """
    boxes = lax.stop_gradient(boxes)
    matches = match(boxes, gt, high=iou, low=iou, low_quality=False, boxes_valid=valid, crowd_ignore=crowd_ignore)
    taken, index = matches.positive | matches.negative, jnp.where(matches.positive, matches.gt, 0)
    return Samples(
        boxes=jnp.where(taken[:, None], boxes, 0.0),
        gt=index,
        classes=jnp.where(matches.positive, jnp.take(gt.classes, index), 0),
        positive=matches.positive,
        valid=taken,
    )


def _ranks(key: Key[Array, ""] | None, n: int) -> Float[Array, " n"]:
    """Random numbers in [0, 1); equal ones without a key, since `top_k` puts the lower index first.

    Not integers: XLA's CPU backend takes the top of floats a hundred times faster.
    """
    return jnp.zeros(n) if key is None else jax.random.uniform(key, (n,))
