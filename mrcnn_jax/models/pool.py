"""RoI features from a pyramid: each RoI is read from the level that fits its size (Lin et al., "FPN", 2017, eq. 1)."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from mrcnn_jax.ops.roi_align import assign_levels, roi_align
from mrcnn_jax.types import Pyramid

_NOWHERE = 1e6


@dataclass(frozen=True)
class Pooler:
    """How RoIAlign reads: Detectron2 is aligned and adaptive (sampling_ratio 0), torchvision neither (2)."""

    aligned: bool = True
    sampling_ratio: int = 0
    level_eps: float = 1e-8
    canonical_size: float = 224.0
    levels: tuple[int, ...] = (2, 3, 4, 5)

    def __call__(
        self, pyramid: Pyramid, boxes: Float[Array, "b r 4"], valid: Bool[Array, "b r"], size: int
    ) -> Float[Array, "b r s s c"]:
        """Pool every RoI of a batch to size x size; a row that is not valid gives zeros."""
        maps = [pyramid[level][0] for level in self.levels]
        extents = [pyramid[level][1] for level in self.levels]
        if extents[0] is None:
            extents = [jnp.broadcast_to(jnp.array(m.shape[1:3], jnp.int32), (m.shape[0], 2)) for m in maps]
        extents = jnp.stack(extents, axis=1)
        # So far outside that RoIAlign takes no sample. A box of zeros would be made a cell wide if not aligned.
        boxes = jnp.where(valid[..., None], boxes, _NOWHERE)
        strides = [2**level for level in self.levels]

        def one_image(maps, extents, boxes):
            return roi_align(
                maps, extents, strides, boxes, levels=self._assign(boxes), size=size,
                sampling_ratio=self.sampling_ratio, aligned=self.aligned,
            )  # fmt: skip

        return jax.vmap(one_image)(maps, extents, boxes)

    def _assign(self, boxes: Float[Array, "r 4"]) -> Int[Array, " r"]:
        low, high = self.levels[0], self.levels[-1]
        return assign_levels(boxes, low, high, canonical_size=self.canonical_size, eps=self.level_eps) - low


def over_rois(
    network: nn.Module, rois: Float[Array, "b r s s c"], valid: Bool[Array, "b r"], train: bool
) -> Float[Array, "b r ..."]:
    """What a network of RoI features [n s s c] says of the RoIs of a batch.

    `valid` tells a synchronised BatchNorm which of them exist.
    """
    out = network(rois.reshape(-1, *rois.shape[2:]), train, valid.reshape(-1))
    return out.reshape(*valid.shape, *out.shape[1:])
