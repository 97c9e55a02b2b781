"""The heads of masks and keypoints, as Detectron2 and torchvision build and initialise them.

Features may be bfloat16; the last layer of every head, and with it the logits, is float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from mrcnn_jax.nn.conv import Conv, he_normal, xavier_fan_in
from mrcnn_jax.nn.heads import conv_row, normal


class MaskHead(nn.Module):
    """RoI features to one mask a class at twice the side: convolutions, 2 x 2 deconvolution, 1 x 1 predictor.

    `num_classes=1` is the class-agnostic head. With `background_output`, as torchvision, `predictor` has a mask for the
    background in front, which nobody reads. Names: conv1, norm1, ..., deconv, predictor.
    """

    num_convs: int = 4
    dim: int = 256
    num_classes: int = 80
    background_output: bool = False
    norm: str | None = None
    dtype: str = "float32"
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n s s c"], train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n m m k"]:
        """`valid` tells which RoIs exist, for the statistics of a synchronised BatchNorm; None is all."""
        x = conv_row(x, self.num_convs, self.dim, self.norm, self.dtype, self.axis_name, train, valid)
        x = nn.relu(Deconv(self.dim, dtype=self.dtype, name="deconv")(x))
        # The predictor looks at one cell at a time: apply it before the cells are put in place, on fewer channels.
        n, h, w = x.shape[:3]
        unread = 1 if self.background_output else 0
        outputs = unread + self.num_classes
        predictor = Conv(outputs, 1, use_bias=True, kernel_init=normal(0.001), name="predictor")
        logits = predictor(x.reshape(n, h, 4 * w, self.dim)).reshape(n, h, w, 2, 2, outputs)
        return depth_to_space(logits[..., unread:])


class MaskMLP(nn.Module):
    """RoI features to one mask a class at twice the side by fully connected layers (Mask R-CNN, table 2e).

    Names: fc1, ..., predictor.
    """

    fc_dims: tuple[int, ...] = (1024, 1024)
    num_classes: int = 80
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n s s c"], train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n m m k"]:
        """Without norms, neither `train` nor which RoIs exist makes a difference."""
        del train, valid
        n, side = x.shape[0], 2 * x.shape[1]
        x = x.reshape(n, -1)
        for i, features in enumerate(self.fc_dims, start=1):
            x = nn.relu(nn.Dense(features, dtype=self.dtype, kernel_init=xavier_fan_in, name=f"fc{i}")(x))
        predictor = nn.Dense(side * side * self.num_classes, kernel_init=normal(0.001), name="predictor")
        return predictor(x.astype(jnp.float32)).reshape(n, side, side, self.num_classes)


class Deconv(nn.Module):
    """A 2 x 2 transposed convolution of stride 2: every cell becomes four, each by its own matrix.

    `kernel` is [2 2 in out] and `bias` [out]. PyTorch's ConvTranspose2d weight [in out 2 2], transposed to (2, 3, 0,
    1), is this kernel, without the flip that Flax's ConvTranspose needs.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w 2 2 c2"]:
        """The four cells of each cell; `depth_to_space` puts them in place."""
        n, h, w, c = x.shape
        kernel = self.param("kernel", he_normal, (2, 2, c, self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)).astype(self.dtype)
        cells = x.astype(self.dtype).reshape(-1, c) @ kernel.transpose(2, 0, 1, 3).reshape(c, -1)
        return cells.reshape(n, h, w, 2, 2, self.features) + bias[None, None, None, None, None]


def depth_to_space(x: Float[Array, "n h w 2 2 c"]) -> Float[Array, "n h2 w2 c"]:
    """Cell (i, j) of cell (y, x) goes to (2 y + i, 2 x + j)."""
    n, h, w, _, _, c = x.shape
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c)


class KeypointHead(nn.Module):
    """RoI features to one heatmap a keypoint at four times the side (Mask R-CNN, section 5).

    Convolutions, a 4 x 4 transposed convolution of stride 2, which predicts, and bilinear interpolation to twice its
    result. Names: conv1, ..., score_lowres.
    """

    conv_dims: tuple[int, ...] = (512,) * 8
    num_keypoints: int = 17
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n s s c"], train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n m m j"]:
        """Without norms, neither `train` nor which RoIs exist makes a difference."""
        del train, valid
        for i, dim in enumerate(self.conv_dims, start=1):
            x = nn.relu(Conv(dim, 3, use_bias=True, dtype=self.dtype, name=f"conv{i}")(x))
        x = UpConv(self.num_keypoints, name="score_lowres")(x.astype(jnp.float32))
        n, h, w, j = x.shape
        # At the borders this repeats the outermost cells, as torch's `interpolate` with `align_corners=False`.
        return jax.image.resize(x, (n, 2 * h, 2 * w, j), "bilinear")


class UpConv(nn.Module):
    """A 4 x 4 transposed convolution of stride 2, cut to twice the side, as PyTorch's with `padding=1`.

    `kernel` is [4 4 in out] and `bias` [out]. PyTorch's ConvTranspose2d weight [in out 4 4], transposed to (2, 3, 0,
    1), is this kernel, without the flip that Flax's ConvTranspose needs.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        # What PyTorch calls the fan-out of its weight is the fan-in of this one.
        initial = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", initial, (4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        n, h, w, c = x.shape
        # What each cell adds to 4 x 4 cells of the result: 2 x 2 squares of four, put in place two cells apart. As one
        # matrix product its gradient is ten times as fast on a CPU as that of XLA's transposed convolution.
        squares = x.reshape(-1, c) @ kernel.transpose(2, 0, 1, 3).reshape(c, -1)
        squares = squares.reshape(n, h, w, 2, 2, 2, 2, self.features)
        ends = (0, 2), (2, 0)
        parts = [
            jnp.pad(depth_to_space(squares[:, :, :, i, :, j]), ((0, 0), ends[i], ends[j], (0, 0)))
            for i in range(2)
            for j in range(2)
        ]
        return sum(parts[1:], parts[0])[:, 1:-1, 1:-1] + bias[None, None, None]
