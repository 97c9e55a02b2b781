"""From pixels to what a backbone expects."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Float32, Int, UInt8


@dataclass(frozen=True)
class Pixels:
    """Channel order, mean and deviation (on 0..255), and the canvas.

    An image's canvas is its size rounded up to `divisor`: what a reference implementation pads it to when it is alone.
    Where `canvas` is False the whole padded array is the canvas, and an image then sees its neighbours' padding, as in
    the references.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False
    divisor: int = 32
    canvas: bool = True
    dtype: str = "float32"

    def __call__(
        self, image: UInt8[Array, "b h w 3"] | Float32[Array, "b h w 3"], size: Int[Array, "b 2"]
    ) -> tuple[Float[Array, "b h w 3"], Int[Array, "b 2"] | None]:
        """The normalised images, zero beyond their size, and their canvases in pixels."""
        shape = jnp.array(image.shape[1:3], jnp.int32)
        pixels = (image.astype(jnp.float32) - jnp.array(self.mean)[None, None, None]) / jnp.array(self.std)[
            None, None, None
        ]
        pixels = pixels[..., ::-1] if self.bgr else pixels
        rows = jnp.arange(image.shape[1])[None, :, None, None] < size[:, 0, None, None, None]
        columns = jnp.arange(image.shape[2])[None, None, :, None] < size[:, 1, None, None, None]
        pixels = jnp.where(rows & columns, pixels, 0.0).astype(self.dtype)
        if not self.canvas:
            return pixels, None
        # Not `//`, which takes ten operations to be right for negative numbers, and again wherever it is fused into.
        canvas = lax.div(size + (self.divisor - 1), jnp.full_like(size, self.divisor)) * self.divisor
        return pixels, jnp.minimum(canvas, shape[None])
