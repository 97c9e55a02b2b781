"""Loss pieces of one image. What a mask leaves out may hold anything, NaN included: no trace in loss or gradient.

A loss is returned as `(total, weight)`, both sums; the division happens once, over all images and devices.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


def smooth_l1(x: Float[Array, "*n"], beta: float | int) -> Float[Array, "*n"]:
    """Element-wise `x^2 / (2 beta)` up to `beta`, `|x| - beta / 2` beyond; `|x|` for beta 0 (Fast R-CNN, eq. 3)."""
    # Not jnp.abs, whose slope at 0 is 1 in JAX; here it is 0, as in torch.
    size = jnp.sign(x) * x
    if beta == 0:
        return size
    return jnp.where(size < beta, 0.5 / beta * x * x, size - 0.5 * beta)


def sigmoid_cross_entropy(logits: Float[Array, "*n"], targets: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Element-wise binary cross-entropy of a logit and a target in [0, 1], stable for logits of any size."""
    return targets * jax.nn.softplus(-logits) + (1.0 - targets) * jax.nn.softplus(logits)


def softmax_cross_entropy(
    logits: Float[Array, "s c"], classes: Int[Array, " s"], valid: Bool[Array, " s"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of `-log softmax(logits)[class]` over the valid rows, and how many they are."""
    log_p = jax.nn.log_softmax(jnp.where(valid[:, None], logits, 0.0))
    picked = jnp.take_along_axis(log_p, jnp.where(valid, classes, 0)[:, None], axis=1)[:, 0]
    return -jnp.where(valid, picked, 0.0).sum(), _count(valid)


def objectness_loss(
    logits: Float[Array, " a"], positive: Bool[Array, " a"], sampled: Bool[Array, " a"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Binary cross-entropy summed over the sampled anchors, and how many they are (Faster R-CNN, equation 1)."""
    loss = sigmoid_cross_entropy(jnp.where(sampled, logits, 0.0), positive.astype(logits.dtype))
    return jnp.where(sampled, loss, 0.0).sum(), _count(sampled)


def box_loss(
    deltas: Float[Array, "n 4"], targets: Float[Array, "n 4"], where: Bool[Array, " n"], beta: float | int
) -> Float[Array, ""]:
    """Smooth L1 between deltas and targets, summed over the chosen rows and their four numbers.

    Only the sum: both reference libraries divide it by the number of sampled anchors or RoIs, background included.
    """
    deltas, targets = (jnp.where(where[:, None], x, 0.0) for x in (deltas, targets))
    return smooth_l1(deltas - targets, beta).sum()


def mask_loss(
    logits: Float[Array, "s m m"], targets: Float[Array, "s m m"], where: Bool[Array, " s"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum over the chosen RoIs of the mean binary cross-entropy of their pixels, and how many RoIs they are.

    Total over weight is the mean over all their pixels (Mask R-CNN, section 3; both reference libraries).
    """
    logits, targets = (jnp.where(where[:, None, None], x, 0.0) for x in (logits, targets))
    loss = sigmoid_cross_entropy(logits, targets).mean(axis=(1, 2))
    return jnp.where(where, loss, 0.0).sum(), _count(where)


def mask_softmax_loss(
    logits: Float[Array, "s m m k1"],
    targets: Float[Array, "s m m"],
    classes: Int[Array, " s"],
    where: Bool[Array, " s"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum over the chosen RoIs of the mean cross-entropy of their pixels, and how many RoIs they are.

    Every pixel is of the RoI's class or of class 0, the background, and the classes compete (Mask R-CNN, table 2b).
    """
    log_p = jax.nn.log_softmax(jnp.where(where[:, None, None, None], logits, 0.0))
    classes = jnp.where(where, classes, 0)[:, None, None, None]
    inside = jnp.take_along_axis(log_p, jnp.broadcast_to(classes, (*targets.shape, 1)), axis=-1)[..., 0]
    targets = jnp.where(where[:, None, None], targets, 0.0)
    loss = -(targets * inside + (1.0 - targets) * log_p[..., 0]).mean(axis=(1, 2))
    return jnp.where(where, loss, 0.0).sum(), _count(where)


def keypoint_loss(
    logits: Float[Array, "s j m m"], cells: Int[Array, "s j"], where: Bool[Array, "s j"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum over the chosen keypoints of the cross-entropy of their m * m cells, and how many keypoints they are.

    Total over weight is the loss of both reference libraries (Mask R-CNN, section 5), in Detectron2 the one normalised
    by visible keypoints, its default.
    """
    s, j, m, _ = logits.shape
    return softmax_cross_entropy(logits.reshape(s * j, m * m), cells.reshape(s * j), where.reshape(s * j))


def _count(mask: Bool[Array, " n"]) -> Float[Array, ""]:
    return mask.sum().astype(jnp.float32)
