"""RoI features from a pyramid: each RoI is read from the level that fits its size (Lin et al., "FPN", 2017, eq. 1)."""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from mrcnn_jax.ops.roi_align import assign_levels, roi_align
from mrcnn_jax.ops.roi_pool import roi_pool
from mrcnn_jax.ops.roi_warp import roi_align_max, whole_cells
from mrcnn_jax.types import Pyramid

_NOWHERE = 1e6


@dataclass(frozen=True)
class Pooler:
    """How RoIs are read.

    RoIAlign as Detectron2 has it is aligned and adaptive (sampling_ratio 0), as torchvision neither (2). R-CNN warps
    what it reads from the image itself, level 0, with some of its surroundings (Girshick et al. 2014, appendix A).
    """

    kind: Literal["align", "warp", "pool"] = "align"
    aligned: bool = True
    sampling_ratio: int = 0
    # What becomes of the samples of a bin: their mean or the largest.
    largest: bool = False
    level_eps: float = 1e-8
    canonical_size: float = 224.0
    levels: tuple[int, ...] = (2, 3, 4, 5)
    # How many cells of the result, on each side, show what lies around the RoI.
    context: int = 0

    def __call__(
        self, pyramid: Pyramid, boxes: Float[Array, "b r 4"], valid: Bool[Array, "b r"], size: int
    ) -> Float[Array, "b r s s c"]:
        """Pool every RoI of a batch to size x size; a row that is not valid gives zeros."""
        maps = [pyramid[level][0] for level in self.levels]
        extents = [pyramid[level][1] for level in self.levels]
        if extents[0] is None:
            extents = [jnp.broadcast_to(jnp.array(m.shape[1:3], jnp.int32), (m.shape[0], 2)) for m in maps]
        extents = jnp.stack(extents, axis=1)
        # So far outside that no sample is taken. A box of zeros would be made a cell wide if not aligned.
        boxes = jnp.where(valid[..., None], boxes, _NOWHERE)
        return jax.vmap(lambda *one_image: self._pool(*one_image, size))(maps, extents, boxes)

    def _pool(
        self, maps: list[Array], extents: Int[Array, "l 2"], boxes: Float[Array, "r 4"], size: int
    ) -> Float[Array, "r s s c"]:
        levels, strides = self._assign(boxes), [2**level for level in self.levels]
        if self.context:
            boxes = _enlarge(boxes, size / (size - 2 * self.context))
        if self.kind == "pool":
            return roi_pool(maps, extents, strides, boxes, size=size, levels=levels)
        if self.kind == "warp":
            boxes = whole_cells(boxes, jnp.array(strides, jnp.float32)[levels])
        aligned = self.aligned or self.kind == "warp"
        align = roi_align_max if self.largest else roi_align
        return align(
            maps, extents, strides, boxes, levels=levels, size=size, sampling_ratio=self.sampling_ratio, aligned=aligned
        )

    def _assign(self, boxes: Float[Array, "r 4"]) -> Int[Array, " r"]:
        low, high = self.levels[0], self.levels[-1]
        return assign_levels(boxes, low, high, canonical_size=self.canonical_size, eps=self.level_eps) - low


def _enlarge(boxes: Float[Array, "r 4"], factor: float) -> Float[Array, "r 4"]:
    """Boxes with the same centres and `factor` times the sides."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * (factor / 2)
    return jnp.concatenate([centre - half, centre + half], axis=1)


def over_rois(
    network: nn.Module, rois: Float[Array, "b r s s c"], valid: Bool[Array, "b r"], train: bool
) -> Float[Array, "b r ..."]:
    """What a network of RoI features [n s s c] says of the RoIs of a batch.

    `valid` tells a synchronised BatchNorm which of them exist.
    """
    out = network(rois.reshape(-1, *rois.shape[2:]), train, valid.reshape(-1))
    return out.reshape(*valid.shape, *out.shape[1:])
