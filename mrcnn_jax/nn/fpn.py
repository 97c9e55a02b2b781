"""The Feature Pyramid Network (Lin et al., 2017)."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mrcnn_jax.nn.conv import Conv, halve, within, xavier_fan_in
from mrcnn_jax.nn.norm import norm
from mrcnn_jax.types import Pyramid


class FPN(nn.Module):
    """Carries what coarse levels know down to the fine ones: lateral 1 x 1, add the level above, output 3 x 3.

    One more level is every second cell of the coarsest, for the largest anchors. Convolutions have a bias where there
    is no normalisation. Names: lateral2, lateral2_norm, output2, output2_norm, ...
    """

    channels: int = 256
    norm: str | None = None
    dtype: str = "float32"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, maps: Pyramid, train: bool) -> Pyramid:
        def layer(x: Array, extent: Array | None, size: int, name: str) -> Array:
            x = Conv(
                self.channels, size, use_bias=not self.norm, dtype=self.dtype, kernel_init=xavier_fan_in, name=name
            )(x)
            return norm(self.norm, name=f"{name}_norm", dtype=self.dtype, axis_name=self.axis_name)(x, extent, train)

        pyramid, above = {}, None
        for level in sorted(maps, reverse=True):
            x, extent = maps[level]
            merged = layer(x, extent, 1, f"lateral{level}")
            merged = merged if above is None else merged + upsample(above, merged.shape[1], merged.shape[2])
            above = within(merged, extent)
            pyramid[level] = (within(layer(above, extent, 3, f"output{level}"), extent), extent)
        top = max(maps)
        pyramid[top + 1] = (pyramid[top][0][:, ::2, ::2], halve(pyramid[top][1]))
        return dict(sorted(pyramid.items()))


def upsample(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b h2 w2 c"]:
    """Every cell twice along both axes, cut to the finer map's size, which is 2n or 2n - 1.

    For these sizes that is nearest-neighbour interpolation to the exact size, which torchvision does, and to twice the
    size, which Detectron2 does; and it is right for every extent inside the map.
    """
    b, h, w, c = x.shape
    if ((height + 1) // 2, (width + 1) // 2) != (h, w):
        raise ValueError(f"a map of {height} x {width} does not lie below one of {h} x {w}")
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    return x[:, :height, :width]
