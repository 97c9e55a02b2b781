"""Exact greedy non-maximum suppression, and top-k, over the rows of one image that are valid.

Greedy NMS is the only solution of `keep[j] = valid[j] and no earlier i has keep[i] and suppresses j`, with rows in
order of score. A CPU finds it row by row. An accelerator starts with all valid rows and applies the right side again
and again: t rounds settle at least the first t rows, in practice about six rounds settle all, and the result is that
of the greedy loop to the last row, at any threshold.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from mrcnn_jax.ops import boxes as box_ops

# On a GPU every trip of a `while` waits for the host; nearly all problems are settled in one trip of eight rounds.
ROUNDS_PER_TRIP = 8

Threshold = Float[Array, ""] | float | int


def top_k_valid(
    scores: Float[Array, " n"], valid: Bool[Array, " n"], k: int
) -> tuple[Int[Array, " k"], Bool[Array, " k"]]:
    """Indices of the `k` best valid rows, best first (the lower index wins a tie), and which of the k slots hold one.

    Slots without a row, also those by which `k` exceeds n, are False and hold some index within range.
    """
    lowest = jnp.finfo(scores.dtype).min
    # top_k puts -0.0 below 0.0, though they are equal, and a valid -inf must stay above what is not valid.
    scores = jnp.where(scores == 0, 0.0, jnp.maximum(scores, lowest))
    _, index = lax.top_k(jnp.where(valid, scores, -jnp.inf), min(k, scores.shape[0]))
    missing = k - index.shape[0]
    return jnp.pad(index, (0, missing)), jnp.pad(valid[index], (0, missing))


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"],
    threshold: Threshold,
    groups: Int[Array, " n"] | None = None,
) -> Bool[Array, " n"]:
    """Which rows survive: best score first, a row falls to a survivor whose IoU with it is over `threshold`.

    Strictly over, compared in float32; the lower index wins a tie in score. Rows of different `groups` (classes,
    pyramid levels) leave each other alone; torchvision and Detectron2 shift the groups apart instead, which costs
    precision. A row that is not valid, or holds NaN, is neither kept nor felt by others.
    """
    if boxes.shape[0] == 0:
        return valid
    boxes, scores = lax.stop_gradient((boxes, scores))
    valid = valid & ~jnp.isnan(scores) & ~jnp.isnan(boxes).any(axis=-1)
    order, valid = top_k_valid(scores, valid, scores.shape[0])
    boxes = jnp.where(valid[:, None], boxes[order], 0.0)
    groups = jnp.zeros_like(order) if groups is None else groups[order]
    keep = lax.platform_dependent(
        boxes, groups, valid, cpu=partial(_row_by_row, threshold), default=partial(_all_rows_at_once, threshold)
    )
    return jnp.zeros_like(keep).at[order].set(keep)


def _row_by_row(
    threshold: Threshold, boxes: Float[Array, "n 4"], groups: Int[Array, " n"], valid: Bool[Array, " n"]
) -> Bool[Array, " n"]:
    """Survivors among rows sorted by score, those that are not valid last."""
    row = jnp.arange(boxes.shape[0])

    def strike_out(i: Int[Array, ""], keep: Bool[Array, " n"]) -> Bool[Array, " n"]:
        box, group = (lax.dynamic_slice_in_dim(x, i, 1) for x in (boxes, groups))
        struck = _conflict(box, group, boxes, groups, threshold)[0] & (row > i)
        return keep & ~(struck & keep[i])

    return lax.fori_loop(0, valid.sum(), strike_out, valid)


def _all_rows_at_once(
    threshold: Threshold, boxes: Float[Array, "n 4"], groups: Int[Array, " n"], valid: Bool[Array, " n"]
) -> Bool[Array, " n"]:
    """The same as a fixed point, from the matrix of which earlier row (first axis) would suppress which later one."""
    suppresses = jnp.triu(_conflict(boxes, groups, boxes, groups, threshold), 1)

    def trip(carry: tuple[Bool[Array, " n"], Bool[Array, ""]]) -> tuple[Bool[Array, " n"], Bool[Array, ""]]:
        keep, _ = carry
        for _ in range(ROUNDS_PER_TRIP):
            before, keep = keep, valid & ~(suppresses & keep[:, None]).any(axis=0)
        return keep, (keep == before).all()

    return lax.while_loop(lambda carry: ~carry[1], trip, (valid, jnp.asarray(False)))[0]


def _conflict(
    a: Float[Array, "n 4"],
    a_groups: Int[Array, " n"],
    b: Float[Array, "m 4"],
    b_groups: Int[Array, " m"],
    threshold: Threshold,
) -> Bool[Array, "n m"]:
    """Pairs of one group whose IoU is over the threshold."""
    return (box_ops.iou(a, b) > threshold) & (a_groups[:, None] == b_groups[None, :])
