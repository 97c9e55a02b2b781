"""Box-relative mask probabilities -> pixels of the image -> COCO run lengths, without ever holding a full-size mask.

NumPy only: worker processes import this file and little else.
"""

import numpy as np
from jaxtyping import Bool, Float

from mrcnn_jax.conventions import Rule


def paste(
    mask: Float[np.ndarray, "m m"],
    box: Float[np.ndarray, " 4"],
    height: int,
    width: int,
    rule: Rule = "detectron2",
    threshold: float = 0.5,
) -> tuple[Bool[np.ndarray, "wh ww"], tuple[int, int]]:
    """The part of the image that an object can cover, and the (y, x) of its corner; the rest is not the object.

    Both rules interpolate bilinearly at pixel centres, as the library of that name does:

    - `detectron2` (`layers/mask_ops.py`): the mask fills the box exactly and is zero beyond it; a pixel is set if its
      probability is at least `threshold`.
    - `torchvision` (`detection/roi_heads.py`): mask and box are padded by one mask pixel, the box is truncated to whole
      pixels and counted with both ends, values do not fade beyond the mask; a pixel is set if above `threshold`.

    A box that is empty, not finite or outside the image gives an empty window (both libraries raise on the last).

    Args:
        mask: probabilities, m x m.
        box: xyxy in pixels of the image.
        height, width: of the image.
    """
    if not np.isfinite(box).all():
        return np.zeros((0, 0), bool), (0, 0)
    box, mask = box.astype(np.float32), mask.astype(np.float32)
    if rule == "detectron2":
        x0, y0, x1, y1 = box
        # Beyond the box the outermost sample fades to zero within half a cell, which only a low threshold can see.
        fade = max(0.5 - threshold, 0) / len(mask)
        left, right = _whole(x0 - fade * (x1 - x0), x1 + fade * (x1 - x0), width)
        top, bottom = _whole(y0 - fade * (y1 - y0), y1 + fade * (y1 - y0), height)
        if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
            return np.zeros((0, 0), bool), (0, 0)
        columns = _fading_weights(left, right, x0, x1, len(mask))
        rows = _fading_weights(top, bottom, y0, y1, len(mask))
    else:
        mask = np.pad(mask, 1)
        x0, y0, x1, y1 = _padded_box(box, len(mask))
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1 + 1, width), min(y1 + 1, height)
        if right <= left or bottom <= top:
            return np.zeros((0, 0), bool), (0, 0)
        columns = _clamped_weights(left, right, x0, max(x1 + 1 - x0, 1), len(mask))
        rows = _clamped_weights(top, bottom, y0, max(y1 + 1 - y0, 1), len(mask))
    # Transposed, so that the window lies in memory column by column, as run lengths want it.
    window = (columns @ mask.T) @ rows.T
    limit = np.float32(threshold)
    return (window >= limit if rule == "detectron2" else window > limit).T, (top, left)


def encode_window(window: Bool[np.ndarray, "wh ww"], y0: int, x0: int, height: int, width: int) -> dict:
    """COCO's compressed run-length encoding of an image that is False outside a window with its corner at (y0, x0).

    Equals `pycocotools.mask.encode` of the whole image byte for byte; `counts` is text, ready for JSON.
    """
    wh, ww = window.shape
    # Columns one after the other, each closed by a False, so that no run crosses columns; and a False in front.
    flat = np.zeros(ww * (wh + 1) + 1, bool)
    flat[1:].reshape(ww, wh + 1)[:, :wh] = window.T
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), wh + 1)
    edges = (column + x0) * height + row + y0
    starts, ends = edges[0::2], edges[1::2]
    # A run that ends at the bottom of the image goes on at the top of the next column.
    apart = starts[1:] != ends[:-1]
    edges = np.stack([starts[np.append(True, apart)], ends[np.append(apart, True)]], axis=1) if len(starts) else edges
    counts = np.diff(edges.ravel(), prepend=0, append=height * width)
    return {"size": [height, width], "counts": _compress(counts[:-1] if counts[-1] == 0 else counts)}


def _whole(low: np.float32, high: np.float32, size: int) -> tuple[int, int]:
    """The pixels of 0..size that [low, high] touches."""
    return max(int(np.floor(low)), 0), min(int(np.ceil(high)), size)


def _fading_weights(first: int, last: int, low: np.float32, high: np.float32, m: int) -> Float[np.ndarray, "pixels m"]:
    """What each pixel takes from each of m samples over [low, high]: linear, zero beyond the outer samples."""
    one, two = np.float32(1), np.float32(2)
    # The library's order of operations in its float32, so that a pixel right at the threshold falls the same way.
    grid = (np.arange(first, last, dtype=np.float32) + np.float32(0.5) - low) / (high - low) * two - one
    at = ((grid + one) * np.float32(m) - one) / two
    return np.maximum(one - np.abs(at[:, None] - np.arange(m, dtype=np.float32)), np.float32(0))


def _clamped_weights(first: int, last: int, low: int, length: int, m: int) -> Float[np.ndarray, "pixels m"]:
    """The same for m samples resized to `length` pixels from `low` on, with the outer samples going on for ever."""
    scale = np.float32(m) / np.float32(length)
    at = scale * (np.arange(first - low, last - low, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    at = np.clip(at, np.float32(0), np.float32(m - 1))
    return np.maximum(np.float32(1) - np.abs(at[:, None] - np.arange(m, dtype=np.float32)), np.float32(0))


def _padded_box(box: Float[np.ndarray, " 4"], padded: int) -> tuple[int, int, int, int]:
    """The box grown as its mask grew from `padded - 2` to `padded`, truncated to whole pixels."""
    scale = np.float32(padded / (padded - 2))
    half = (box[2:] - box[:2]) * np.float32(0.5) * scale
    centre = (box[2:] + box[:2]) * np.float32(0.5)
    corners = np.clip(np.concatenate([centre - half, centre + half]), -1e9, 1e9)
    x0, y0, x1, y1 = corners.astype(np.int64).tolist()
    return x0, y0, x1, y1


def _compress(counts: np.ndarray) -> str:
    """COCO's text form of run lengths: differences to the count before the last, in groups of five bits from '0' on."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    shifted = values[:, None] >> np.arange(0, 40, 5)
    groups, rest = shifted[:, :-1] & 31, shifted[:, 1:]
    # A group is the last of its number when what is left only repeats its sign bit.
    more = np.where(groups & 16, rest != -1, rest != 0)
    used = np.concatenate([np.ones_like(more[:, :1]), more[:, :-1]], axis=1)
    return (groups + 32 * more + 48)[used].astype(np.uint8).tobytes().decode("ascii")
