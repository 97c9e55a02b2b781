"""The Region Proposal Network (Ren et al., "Faster R-CNN", 2015; over a pyramid as in Lin et al., "FPN", 2017)."""

from collections.abc import Sequence
from operator import itemgetter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int, Num

from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops.anchors import cell_anchors, grid_anchors
from mrcnn_jax.ops.losses import box_loss, objectness_loss
from mrcnn_jax.ops.match import match
from mrcnn_jax.ops.nms import nms, top_k_valid
from mrcnn_jax.ops.sample import sample_anchors
from mrcnn_jax.types import GroundTruth, Proposals, Pyramid

BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@struct.dataclass
class RPNOutput:
    """One value a anchor, levels concatenated finest first."""

    logits: Float[Array, "*b a"]
    deltas: Float[Array, "*b a 4"]
    anchors: Float[Array, "*b a 4"]
    # False for an anchor whose cell lies beyond the image's canvas.
    valid: Bool[Array, "*b a"]


class RPN(nn.Module):
    """Scores and refines anchors on every level of a pyramid, and turns the best into proposals.

    `pre_nms` and `post_nms` are (training, inference) counts: the first a level, the second an image.
    """

    head: nn.Module
    sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    # torchvision rounds its anchors and takes the stride to be image // grid; Detectron2 does neither.
    rounded: bool = False
    stride_from_grid: bool = False
    iou: tuple[float, float] = (0.3, 0.7)
    num_samples: int = 256
    positive_fraction: float = 0.5
    beta: float = 0.0
    # Detectron2 divides by the number of slots, torchvision by the number of anchors that were sampled.
    divide_by_slots: bool = True
    pre_nms: tuple[int, int] = (2000, 1000)
    post_nms: tuple[int, int] = (1000, 1000)
    nms_threshold: float = 0.7
    min_size: float = 0.0
    # Whether anchors that cross the image's border take part in training; in the paper (section 3.1.3) they do not.
    train_outside: bool = True

    def __call__(self, pyramid: Pyramid, image_shape: tuple[int, int]) -> RPNOutput:
        """Logits, deltas and anchors of a batch; `image_shape` is that of the padded images."""
        logits, deltas = self.head(pyramid)
        finest = min(pyramid)
        _, extent = pyramid[finest]
        # The map of a canvas, whose sides are multiples of 32, ends where the canvas does.
        canvas = jnp.array([image_shape], jnp.int32) if extent is None else extent * 2**finest
        anchors, valid = [], []
        for level, sizes in zip(sorted(pyramid), self.sizes, strict=True):
            features, extent = pyramid[level]
            height, width = features.shape[1:3]
            extent = _whole(features, extent)
            stride = canvas // jnp.maximum(extent, 1) if self.stride_from_grid else jnp.full_like(extent, 2**level)
            cells = cell_anchors(sizes, self.ratios, self.rounded)
            anchors.append(jax.vmap(_grid, (None, None, None, 0))(cells, height, width, stride))
            inside = jax.vmap(_cells_inside, (None, None, 0))(height, width, extent)
            valid.append(jnp.repeat(inside, len(sizes) * len(self.ratios), axis=1))
        anchors = jnp.concatenate(anchors, 1)
        return RPNOutput(jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1), anchors, jnp.concatenate(valid, 1))

    def losses(
        self, out: RPNOutput, gt: GroundTruth, size: Num[Array, " 2"], key: Array | None
    ) -> dict[str, tuple[Array, Array]]:
        """Objectness and box loss of ONE image; key None samples the first anchors of each kind."""
        (low, high), valid = self.iou, out.valid
        if not self.train_outside:
            inside = jnp.concatenate(
                [out.anchors[:, :2] >= 0, out.anchors[:, 2:] <= size[None, ::-1].astype(jnp.float32)], axis=1
            )
            valid &= jnp.all(inside, axis=1)
        matches = match(out.anchors, gt, high=high, low=low, low_quality=True, boxes_valid=valid)
        positive, negative = sample_anchors(key, matches, self.num_samples, self.positive_fraction)
        objectness, count = objectness_loss(out.logits, positive, positive | negative)
        targets = box_ops.encode(gt.boxes[matches.gt], out.anchors, BOX_WEIGHTS)
        weight = jnp.float32(self.num_samples) if self.divide_by_slots else count
        return {
            "rpn_objectness": (objectness, weight),
            "rpn_box": (box_loss(out.deltas, targets, positive, self.beta), weight),
        }

    def propose(
        self, out: RPNOutput, size: Float[Array, " 2"], level_sizes: Sequence[int], *, train: bool
    ) -> Proposals:
        """The best boxes of ONE image after non-maximum suppression on each level; no gradient flows through them."""
        num_candidates, num_proposals = (counts[0 if train else 1] for counts in (self.pre_nms, self.post_nms))
        num_candidates = min(num_candidates, max(level_sizes))
        out = jax.lax.stop_gradient(out)
        levels, start = [], 0
        for level_size in level_sizes:
            level = jax.tree.map(itemgetter(slice(start, start + level_size)), out)
            levels.append(self._candidates(level, size, num_candidates))
            start += level_size
        levels = jax.tree.map(lambda *x: jnp.stack(x), *levels)
        keep = jax.vmap(lambda c: nms(c.boxes, c.scores, c.valid, self.nms_threshold))(levels)
        merged = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), levels.replace(valid=keep))
        best, valid = top_k_valid(merged.scores, merged.valid, num_proposals)
        return Proposals(merged.boxes[best], merged.scores[best], valid)

    def _candidates(self, out: RPNOutput, size: Float[Array, " 2"], num: int) -> Proposals:
        """The `num` anchors of one level with the highest logits, decoded and clipped to the image."""
        best, valid = top_k_valid(out.logits, out.valid, num)
        boxes = box_ops.clip(box_ops.decode(out.deltas[best], out.anchors[best], BOX_WEIGHTS), size)
        sides = boxes[:, 2:] - boxes[:, :2]
        large = jnp.all(sides >= self.min_size if self.min_size > 0 else sides > 0, axis=-1)
        logits = out.logits[best]
        return Proposals(boxes, logits, valid & large & jnp.isfinite(logits))


def _grid(cells: Float[np.ndarray, "n 4"], height: int, width: int, stride: Int[Array, " 2"]) -> Float[Array, "a 4"]:
    """`grid_anchors` of ONE image, whose stride may be known only at run time."""
    places = jnp.asarray(grid_anchors(np.zeros_like(cells), (height, width), (1, 1)))
    stride = stride.astype(jnp.float32)[jnp.array([1, 0, 1, 0])]
    return places * stride[None] + np.tile(cells, (height * width, 1))


def _whole(features: Array, extent: Int[Array, "b 2"] | None) -> Int[Array, "b 2"]:
    """The extent, or that of the whole map where none is given."""
    if extent is not None:
        return extent
    return jnp.broadcast_to(jnp.array(features.shape[1:3], jnp.int32), (features.shape[0], 2))


def _cells_inside(height: int, width: int, extent: Int[Array, " 2"]) -> Bool[Array, " n"]:
    rows, columns = jnp.arange(height) < extent[0], jnp.arange(width) < extent[1]
    return (rows[:, None] & columns[None, :]).reshape(-1)
