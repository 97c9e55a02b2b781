"""A detector as one StableHLO artefact: uint8 images in, detections out, wherever JAX runs, without this package.

    import jax, jax.export
    detect = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    found = detect.call(images)  # uint8 RGB [batch, height, width, 3]
    found["boxes"], found["scores"], found["classes"], found["valid"], found.get("masks")

Weights, resizing and normalisation are inside. Boxes are xyxy in pixels of the image; `classes` counts from 0.
"""

from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Num, UInt8
from ml_collections import ConfigDict

from mrcnn_jax.data.transforms import resized_shape
from mrcnn_jax.errors import UserError
from mrcnn_jax.files import whole_file
from mrcnn_jax.models.build import build
from mrcnn_jax.types import Batch

PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(
    path: Path, variables: dict[str, Any], config: ConfigDict, *, height: int, width: int, batch_size: int | None = None
) -> None:
    """Writes the artefact for images of one size, for CPU, CUDA and TPU; none of these need be here.

    Args:
        path: the file to write.
        variables: of the model.
        config: of the model.
        height, width: of the images.
        batch_size: images at a time; None leaves it open, to be any number.

    Raises:
        UserError: the model needs proposals, or the file cannot be written.
    """
    if config.rpn is None:
        raise UserError("a model without an RPN needs proposals, which the artefact has no input for: export another")
    (batch,) = jax.export.symbolic_shape("b") if batch_size is None else (batch_size,)
    images = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)
    exported = jax.export.export(jax.jit(detector(variables, config)), platforms=PLATFORMS)(images)
    with whole_file(path) as partial:
        partial.write_bytes(exported.serialize())


def detector(variables: dict[str, Any], config: ConfigDict):
    """The function that is exported: uint8 RGB [b h w 3] to boxes [b d 4], scores, classes, valid [b d] and masks."""
    network, rules = build(config), config.preprocess
    variables = jax.tree.map(jnp.asarray, variables)

    def detect(images: UInt8[Array, "b h w 3"]) -> dict[str, Array]:
        b, height, width, _ = images.shape
        shape = resized_shape(height, width, rules.short_side, rules.max_size, rules.rounding)
        padded = tuple(-(-side // max(rules.divisor, 1)) * max(rules.divisor, 1) for side in shape)
        pixels = resize(images, shape, rules.interpolation)
        pixels = jnp.pad(pixels, ((0, 0), (0, padded[0] - shape[0]), (0, padded[1] - shape[1]), (0, 0)))
        size = jnp.broadcast_to(jnp.array(shape, jnp.int32), (b, 2))
        original = jnp.broadcast_to(jnp.array((height, width), jnp.int32), (b, 2))
        batch = Batch(pixels, size, original, jnp.zeros(b, jnp.int32), jnp.ones(b, bool))
        found: Any = network.apply(variables, batch, method="detect")
        ratio = jnp.array([width / shape[1], height / shape[0]] * 2, jnp.float32)
        limit = jnp.array([width, height] * 2, jnp.float32)
        boxes = jnp.clip(found.boxes * ratio[None, None], 0.0, limit[None, None])
        result = {
            "boxes": jnp.where(found.valid[..., None], boxes, 0.0),
            "scores": jnp.where(found.valid, found.scores, 0.0),
            "classes": jnp.where(found.valid, found.classes - 1, 0),
            "valid": found.valid,
        }
        if found.masks is not None:
            result["masks"] = found.masks
        if found.keypoints is not None:
            points = found.keypoints[..., :2] * ratio[None, None, None, :2]
            result["keypoints"] = jnp.concatenate([points, found.keypoints[..., 2:]], axis=-1)
        return result

    return detect


def resize(images: UInt8[Array, "b h w 3"], shape: tuple[int, int], interpolation: str) -> Num[Array, "b h2 w2 3"]:
    """`data.transforms.resize` on the device. With 'pil' every bit is the same, with 'torchvision' to rounding.

    As long as both sides grow or both shrink: else Pillow may take the axes in the other order.

    OpenCV's short arithmetic is not followed: with 'cv2' one pixel in eight differs by one.
    """
    if interpolation == "pil":
        pixels = images.astype(jnp.int32)
        for axis in (2, 1):
            source, weights = _taps(images.shape[axis], shape[axis - 1], antialias=True)
            # Pillow's arithmetic (`Resample.c`): weights of 22 bits, and each axis rounded to 8 bits.
            weights = np.floor(weights * 2**22 + 0.5).astype(np.int32)
            pixels = jnp.clip((_weigh(pixels, axis, source, weights) + 2**21) >> 22, 0, 255)
        return pixels.astype(jnp.uint8)
    pixels = images.astype(jnp.float32)
    for axis in (2, 1):
        source, weights = _taps(images.shape[axis], shape[axis - 1], antialias=False)
        pixels = _weigh(pixels, axis, source, weights.astype(np.float32))
    return jnp.floor(pixels + 0.5).astype(jnp.uint8) if interpolation == "cv2" else pixels


def _weigh(x: Array, axis: int, source: np.ndarray, weights: np.ndarray) -> Array:
    """Along one axis, for every new cell the sum of its source cells [new taps] times their weights."""
    shape = [1] * x.ndim
    shape[axis] = -1
    parts = [
        jnp.take(x, cells, axis=axis) * jnp.asarray(weight).reshape(shape)
        for cells, weight in zip(source.T, weights.T, strict=True)
    ]
    return sum(parts[1:], parts[0])


def _taps(length: int, new: int, antialias: bool) -> tuple[Int[np.ndarray, "new t"], Float[np.ndarray, "new t"]]:
    """The cells that each new one takes from and their weights: a triangle, as wide as a new cell if antialiased."""
    scale = length / new
    support = max(scale, 1.0) if antialias else 1.0
    centre = (np.arange(new) + 0.5) * scale
    if not antialias:
        # The outermost cells go on for ever.
        centre = np.clip(centre, 0.5, length - 0.5)
    first = np.maximum(np.floor(centre - support + 0.5), 0).astype(np.int64)
    last = np.minimum(np.floor(centre + support + 0.5), length).astype(np.int64)
    cells = first[:, None] + np.arange((last - first).max())[None]
    weights = np.maximum(1 - np.abs(cells + 0.5 - centre[:, None]) / support, 0) * (cells < last[:, None])
    return np.minimum(cells, length - 1), weights / weights.sum(axis=1, keepdims=True)
