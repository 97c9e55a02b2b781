"""Geometry of one image on the host: resize, flip, crop, and the annotations that go with it.

An `Example` passes through pure functions that return a new one. Boxes, proposals and keypoints move with the image.
Segmentations do not: every transform here maps each axis by a scale and a shift, so the example carries that map, and
`object_mask` samples the annotation as it stands, in the box as it was in the file.

All coordinates are continuous: pixel `i` covers [i, i + 1). COCO stores the keypoint in the middle of pixel `i` as `i`,
so half a pixel is added on the way in, as Detectron2 does (torchvision does not), and a horizontal flip is
x -> width - x for boxes and keypoints alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from PIL import Image

from mrcnn_jax.data.dataset import Category, Record
from mrcnn_jax.data.object_masks import box_mask, visible_box
from mrcnn_jax.errors import UserError
from mrcnn_jax.types import Proposals

# uint8, or float32 from 0 to 255 after a resize that does not round.
Pixels = UInt8[np.ndarray, "_h _w 3"] | Float32[np.ndarray, "_h _w 3"]


@dataclass(frozen=True)
class Example:
    """An image on its way to the network, with its n objects in its own pixels."""

    image: Pixels
    boxes: Float32[np.ndarray, "n 4"]
    classes: Int[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    # As in the file: not moved by any transform.
    segmentations: tuple
    # Height and width of the file.
    source_size: tuple[int, int]
    # x, y of a point in the image are scale * (x, y of it in the file) + shift; a flip makes the first scale negative.
    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)
    keypoints: Float32[np.ndarray, "n j 3"] | None = None
    # For each object, which keypoint takes whose place in a flip; None where each keeps its own.
    keypoint_flips: Int[np.ndarray, "n j"] | None = None
    # They may reach over the border, or lie beyond it.
    proposals: Proposals | None = None


def load_example(
    record: Record, categories: tuple[Category, ...] = (), num_keypoints: int = 0, half_pixel: bool = True
) -> Example:
    """Decodes a record; `num_keypoints` slots an object, of the most that a category has (0 leaves keypoints out).

    `half_pixel` makes keypoints continuous; without it they stay COCO's indices of pixels, as torchvision takes them.

    Raises:
        UserError: the image cannot be read.
    """
    n = len(record.classes)
    keypoints = flips = None
    if num_keypoints:
        keypoints = np.zeros((n, num_keypoints, 3), np.float32)
        if record.keypoints is not None:
            keypoints[:, : record.keypoints.shape[1]] = record.keypoints
        keypoints[..., :2] += np.float32(0.5 if half_pixel else 0.0)
        flips = np.tile(np.arange(num_keypoints), (n, 1))
        for row, label in enumerate(record.classes):
            flip_order = categories[int(label) - 1].flip
            flips[row, : len(flip_order)] = flip_order
    return Example(
        image=record.image(),
        boxes=record.boxes.astype(np.float32),
        classes=record.classes,
        crowd=record.crowd,
        segmentations=record.segmentations,
        source_size=(record.height, record.width),
        keypoints=keypoints,
        keypoint_flips=flips,
        proposals=record.proposals,
    )


def resized_shape(height: int, width: int, short: int, max_size: int, rounding: str = "round") -> tuple[int, int]:
    """Height and width with the short side at `short`, or less so that the long side stays within `max_size`.

    `rounding` is 'round' (Detectron2: the short side is exact, the long side int(x + 0.5), the limit applied after) or
    'floor' (torchvision: one scale, both sides cut). 480 x 640 at 800 / 1333 gives 800 x 1067 and 800 x 1066.
    """
    if rounding == "round":
        scale = short / min(height, width)
        new_height, new_width = (float(short), scale * width) if height < width else (scale * height, float(short))
        if max(new_height, new_width) > max_size:
            limit = max_size / max(new_height, new_width)
            new_height, new_width = new_height * limit, new_width * limit
        shape = int(new_height + 0.5), int(new_width + 0.5)
    elif rounding == "floor":
        scale = min(short / min(height, width), max_size / max(height, width))
        shape = int(height * scale), int(width * scale)
    else:
        raise UserError(f"model.preprocess.rounding: {rounding!r} is not known; use 'round' or 'floor'")
    return max(shape[0], 1), max(shape[1], 1)


def fit_shape(shape: tuple[int, int], limit: tuple[int, int]) -> tuple[int, int]:
    """`shape` made smaller, in proportion, where it exceeds `limit` (both height and width)."""
    scale = min(limit[0] / shape[0], limit[1] / shape[1])
    if scale >= 1:
        return shape
    height, width = (min(max(round(side * scale), 1), bound) for side, bound in zip(shape, limit, strict=True))
    return height, width


def resize(image: Pixels, shape: tuple[int, int], interpolation: str) -> Pixels:
    """The image at `shape`, bilinear.

    `interpolation` is 'pil' (antialiased, Detectron2's), 'cv2' (OpenCV's fixed point; eight times as fast, without
    antialiasing), which both round to uint8, or 'torchvision' (`resize_float`), which does not.
    """
    if interpolation == "torchvision":
        return resize_float(image, shape)
    if interpolation not in ("pil", "cv2"):
        raise UserError(
            f"model.preprocess.interpolation: {interpolation!r} is not known; use 'pil', 'cv2' or 'torchvision'"
        )
    if image.shape[:2] == shape:
        return image
    if interpolation == "pil":
        return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
    return cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def resize_float(image: np.ndarray, shape: tuple[int, int]) -> Float32[np.ndarray, "H W c"]:
    """Bilinear without antialiasing at pixel centres, what `torch.nn.functional.interpolate` gives; not rounded.

    torchvision normalises first and resizes then. Since both are linear, normalising this result is the same.
    """
    return cv2.resize(image.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def resize_example(example: Example, shape: tuple[int, int], interpolation: str) -> Example:
    """The example with its image at `shape` (height, width)."""
    ratio = np.array([shape[1] / example.image.shape[1], shape[0] / example.image.shape[0]])
    factor = np.tile(ratio, 2).astype(np.float32)
    keypoints = example.keypoints
    if keypoints is not None:
        keypoints = np.concatenate([keypoints[..., :2] * ratio.astype(np.float32), keypoints[..., 2:]], axis=-1)
    return replace(
        example,
        image=resize(example.image, shape, interpolation),
        boxes=example.boxes * factor,
        scale=_pair(ratio * example.scale),
        shift=_pair(ratio * example.shift),
        keypoints=keypoints,
        proposals=_moved(example.proposals, lambda boxes: boxes * factor),
    )


def flip_horizontal(example: Example) -> Example:
    """The mirror image; left and right keypoints change places."""
    width = np.float32(example.image.shape[1])

    def mirrored(boxes: np.ndarray) -> np.ndarray:
        x1, y1, x2, y2 = boxes.T
        return np.stack([width - x2, y1, width - x1, y2], axis=-1)

    keypoints = example.keypoints
    if keypoints is not None:
        if example.keypoint_flips is not None:
            keypoints = np.take_along_axis(keypoints, example.keypoint_flips[..., None], axis=1)
        keypoints = np.stack([width - keypoints[..., 0], keypoints[..., 1], keypoints[..., 2]], axis=-1)
    return replace(
        example,
        image=cv2.flip(example.image, 1),
        boxes=mirrored(example.boxes),
        scale=(-example.scale[0], example.scale[1]),
        shift=(float(width) - example.shift[0], example.shift[1]),
        keypoints=keypoints,
        proposals=_moved(example.proposals, mirrored),
    )


def crop(example: Example, top: int, left: int, height: int, width: int) -> Example:
    """The window of the image, which must lie inside it, with what can be seen of each object.

    An object that is cut gets the bounding box of its visible part; where it has no segmentation, or is a crowd, its
    box is cut. Objects of which nothing is left are dropped. Keypoints outside become unlabelled. Proposals are moved.
    """
    offset = np.array([left, top], np.float32)
    limit = np.array([width, height], np.float32)
    moved = replace(
        example,
        image=example.image[top : top + height, left : left + width],
        boxes=example.boxes - np.tile(offset, 2),
        proposals=_moved(example.proposals, lambda boxes: boxes - np.tile(offset, 2)),
        shift=_pair(np.subtract(example.shift, offset)),
    )
    boxes = np.clip(moved.boxes, 0, np.tile(limit, 2)).astype(np.float32)
    window = _to_file(moved, np.concatenate([np.zeros(2), limit]))
    for row in np.flatnonzero((boxes != moved.boxes).any(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)):
        if moved.segmentations[row] is None or moved.crowd[row]:
            continue
        seen = visible_box(moved.segmentations[row], window, *moved.source_size)
        seen = np.zeros(4) if seen is None else _from_file(moved, seen)
        boxes[row] = np.concatenate([np.maximum(boxes[row, :2], seen[:2]), np.minimum(boxes[row, 2:], seen[2:])])
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    keypoints = example.keypoints
    if keypoints is not None:
        points = keypoints[keep, :, :2] - offset
        inside = ((points >= 0) & (points <= limit)).all(axis=-1)
        visibility = np.where(inside, keypoints[keep, :, 2], np.float32(0))
        keypoints = np.concatenate([points, visibility[..., None]], axis=-1)
    return replace(
        moved,
        boxes=boxes[keep],
        classes=example.classes[keep],
        crowd=example.crowd[keep],
        segmentations=tuple(example.segmentations[row] for row in np.flatnonzero(keep)),
        keypoints=keypoints,
        keypoint_flips=None if example.keypoint_flips is None else example.keypoint_flips[keep],
    )


def large_scale_jitter(
    example: Example, rng: np.random.Generator, shape: tuple[int, int], scales: tuple[float, float], interpolation: str
) -> Example:
    """Resizes to a random multiple, from `scales`, of what fits `shape`, and cuts a random window of at most `shape`.

    "Simple Copy-Paste" (Ghiasi et al. 2021), as Detectron2 trains it with (0.1, 2.0) and a square of 1024. A smaller
    image is not padded here: its padding is no content, where Detectron2 fills the square with grey.
    """
    size = example.image.shape[:2]
    factor = rng.uniform(*scales) * min(shape[0] / size[0], shape[1] / size[1])
    example = resize_example(example, tuple(max(round(side * factor), 1) for side in size), interpolation)
    height, width = (min(side, bound) for side, bound in zip(example.image.shape[:2], shape, strict=True))
    top = int(rng.integers(example.image.shape[0] - height + 1))
    left = int(rng.integers(example.image.shape[1] - width + 1))
    return crop(example, top, left, height, width)


def object_mask(example: Example, row: int, size: int) -> Bool[np.ndarray, "m m"]:
    """The mask of object `row` inside its box in the example, at `size` x `size` points."""
    box = _to_file(example, example.boxes[row].astype(np.float64))
    mask = box_mask(example.segmentations[row], box, *example.source_size, size)
    return mask[:, ::-1] if example.scale[0] < 0 else mask


def _moved(proposals: Proposals | None, move: Callable[[np.ndarray], np.ndarray]) -> Proposals | None:
    return None if proposals is None else proposals.replace(boxes=move(proposals.boxes))


def _to_file(example: Example, box: np.ndarray) -> np.ndarray:
    """A box of the example in pixels of the file."""
    corners = (box.reshape(2, 2) - example.shift) / example.scale
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def _from_file(example: Example, box: np.ndarray) -> np.ndarray:
    corners = box.reshape(2, 2) * example.scale + example.shift
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def _pair(values: np.ndarray) -> tuple[float, float]:
    return float(values[0]), float(values[1])
