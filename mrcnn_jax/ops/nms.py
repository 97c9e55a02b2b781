"""Exact greedy non-maximum suppression, and top-k, over the rows of one image that are valid.

Greedy NMS is the only solution of `keep[j] = valid[j] and no earlier i has keep[i] and suppresses j`, with rows in
order of score. Applying the right side again and again reaches it: after t rounds the first t rows are settled, and in
practice about six rounds settle all. No sequential pass over the rows is needed, and the result is that of the greedy
loop to the last row, at any threshold.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from mrcnn_jax.ops import boxes as box_ops

TILE = 256
# On a GPU every trip of a `while` waits for the host; nearly all problems are settled in one trip of eight rounds.
ROUNDS_PER_TRIP = 8


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
    threshold: float,
    groups: Int[Array, " n"] | None = None,
) -> Bool[Array, " n"]:
    """Which rows survive: best score first, a row falls to a survivor whose IoU with it is over `threshold`.

    Strictly over, compared in float32; the lower index wins a tie in score. Rows of different `groups` (classes,
    pyramid levels) leave each other alone; torchvision and Detectron2 shift the groups apart instead, which costs
    precision. A row that is not valid, or holds NaN, is neither kept nor felt by others.
    """
    boxes, scores = lax.stop_gradient((boxes, scores))
    valid = valid & ~jnp.isnan(scores) & ~jnp.isnan(boxes).any(axis=-1)
    order, valid = top_k_valid(scores, valid, scores.shape[0])
    boxes = jnp.where(valid[:, None], boxes[order], 0.0)
    groups = jnp.zeros_like(order) if groups is None else groups[order]
    keep = lax.platform_dependent(
        boxes,
        groups,
        valid,
        cuda=lambda *rows: _whole(*rows, threshold),
        rocm=lambda *rows: _whole(*rows, threshold),
        default=lambda *rows: _tiled(*rows, threshold),
    )
    return jnp.zeros_like(keep).at[order].set(keep)


def _whole(
    boxes: Float[Array, "n 4"], groups: Int[Array, " n"], valid: Bool[Array, " n"], threshold: float
) -> Bool[Array, " n"]:
    """Rows sorted by score, all pairs at once."""
    suppresses = jnp.triu(_conflict(boxes, groups, boxes, groups, threshold), 1)
    return _settle(suppresses, valid, ROUNDS_PER_TRIP)


def _tiled(
    boxes: Float[Array, "n 4"], groups: Int[Array, " n"], valid: Bool[Array, " n"], threshold: float
) -> Bool[Array, " n"]:
    """Rows sorted by score, a tile after the other: memory is `TILE * n`, and a settled tile strikes out later rows."""
    n = boxes.shape[0]
    missing = -n % TILE
    boxes = jnp.pad(boxes, ((0, missing), (0, 0)))
    groups = jnp.pad(groups, (0, missing))
    row = jnp.arange(n + missing)

    def settle_tile(t: Int[Array, ""], alive: Bool[Array, " m"]) -> Bool[Array, " m"]:
        tile_boxes, tile_groups, tile_alive = (
            lax.dynamic_slice_in_dim(x, t * TILE, TILE) for x in (boxes, groups, alive)
        )
        inside = jnp.triu(_conflict(tile_boxes, tile_groups, tile_boxes, tile_groups, threshold), 1)
        keep = _settle(inside, tile_alive, 1)
        struck = (_conflict(tile_boxes, tile_groups, boxes, groups, threshold) & keep[:, None]).any(axis=0)
        alive = alive & ~(struck & (row >= (t + 1) * TILE))
        return lax.dynamic_update_slice_in_dim(alive, keep, t * TILE, axis=0)

    return lax.fori_loop(0, (n + missing) // TILE, settle_tile, jnp.pad(valid, (0, missing)))[:n]


def _conflict(
    a: Float[Array, "n 4"],
    a_groups: Int[Array, " n"],
    b: Float[Array, "m 4"],
    b_groups: Int[Array, " m"],
    threshold: float,
) -> Bool[Array, "n m"]:
    """Pairs of one group whose IoU is over the threshold."""
    return (box_ops.iou(a, b) > threshold) & (a_groups[:, None] == b_groups[None, :])


def _settle(suppresses: Bool[Array, "n n"], valid: Bool[Array, " n"], rounds: int) -> Bool[Array, " n"]:
    """The fixed point, given which earlier row (first axis) suppresses which later one."""

    def step(keep: Bool[Array, " n"]) -> Bool[Array, " n"]:
        return valid & ~(suppresses & keep[:, None]).any(axis=0)

    def trip(carry: tuple[Bool[Array, " n"], Bool[Array, ""]]) -> tuple[Bool[Array, " n"], Bool[Array, ""]]:
        keep, _ = carry
        for _ in range(rounds):
            before, keep = keep, step(keep)
        return keep, (keep == before).all()

    return lax.while_loop(lambda carry: ~carry[1], trip, (valid, jnp.asarray(False)))[0]
