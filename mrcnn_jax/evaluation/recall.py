"""Recall of region proposals: the share of the objects that some proposal covers, whatever its class.

As Detectron2's `_evaluate_box_proposals`. Proposals and objects of an image are paired one to one, greedily: of all
pairs that are left, the one of the highest IoU is taken. Average recall (AR) is the mean over IoU 0.50:0.05:0.95
(Hosang et al., "What makes for effective detection proposals?", 2015).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float

from mrcnn_jax.evaluation.coco_json import corners
from mrcnn_jax.evaluation.coco_metrics import shown
from mrcnn_jax.types import Proposals

IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
LIMITS = (100, 300, 1000, 2000)
# COCO's sizes by an object's area in square pixels; one on the edge counts in both.
_AREAS = {"all": (0.0, np.inf), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}
_SUFFIXES = {"all": "", "small": "s", "medium": "m", "large": "l"}
# A pixel of rounding over the border is nothing.
_OUTSIDE = 1.0


@dataclass(frozen=True)
class Recall:
    """The figures of a set of proposals, from 0 to 1; -1 where there is no object of that size."""

    # AR100 ARs100 ARm100 ARl100 AR300 ...: average recall of the best so many proposals an image.
    figures: dict[str, float]
    # Recall at each of `ious` by how many proposals an image.
    recalls: dict[int, tuple[float, ...]]
    ious: tuple[float, ...]
    num_images: int
    # Objects that count: all, small, medium, large.
    num_objects: dict[str, int]
    num_proposals: int
    # Proposals that reach over their image's border by more than a pixel; they were clipped.
    num_outside: int
    # Images without any proposal; their objects count.
    num_without: int

    def __getitem__(self, name: str) -> float:
        return self.figures[name]

    def to_dict(self) -> dict:
        """Everything, ready for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Everything, for a terminal: a column for each number of proposals an image."""
        mean, count = self.num_proposals / max(self.num_images, 1), self.num_objects["all"]
        lines = [f"{self.num_images:,} images, {count:,} objects, {mean:,.1f} proposals an image"]
        lines.append(_row("recall of the best", [f"{limit}" for limit in self.recalls]))
        for i, iou in enumerate(self.ious):
            lines.append(_row(f"IoU {iou:.2f}", [shown(recalls[i]) for recalls in self.recalls.values()]))
        for size, suffix in _SUFFIXES.items():
            values = [shown(self.figures[f"AR{suffix}{limit}"]) for limit in self.recalls]
            lines.append(_row(f"average, {size}", values) + f"   {self.num_objects[size]:,} objects")
        if self.num_without:
            lines.append(f"note: images without any proposal: {self.num_without:,}")
        if self.num_outside:
            lines.append(f"note: proposals that reach over the border, clipped: {self.num_outside:,}")
        return "\n".join(lines)


def proposal_recall(truth: Mapping, proposals: Mapping[int | str, Proposals], limits: Sequence[int] = LIMITS) -> Recall:
    """Recall of each image's best proposals, over all images of the ground truth.

    Crowds and objects marked `difficult` (PASCAL VOC's) count neither as found nor as missed. Unlike in Detectron2,
    objects of an image without proposals are missed (there, they are left out), and boxes are clipped to the image.

    Args:
        truth: COCO ground truth: `images` with `id`, `height` and `width`, `annotations` with `image_id`, `bbox` and
            `area`.
        proposals: boxes in pixels of the image, best first, by image id, for every image.
        limits: how many proposals of an image are looked at.

    Raises:
        KeyError: an image has no entry.
    """
    objects: dict[int, list[dict]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        if not (annotation.get("iscrowd") or annotation.get("difficult")):
            objects[annotation["image_id"]].append(annotation)
    hits = {(limit, size): np.zeros(len(IOUS), np.int64) for limit in limits for size in _AREAS}
    num_objects = dict.fromkeys(_AREAS, 0)
    num_proposals = num_outside = num_without = 0
    for image in truth["images"]:
        own, found = objects[image["id"]], proposals[image["id"]]
        boxes = found.boxes[found.valid].astype(np.float64)
        inside = np.clip(boxes, 0, np.tile([float(image["width"]), float(image["height"])], 2))
        num_proposals += len(boxes)
        num_outside += int((np.abs(boxes - inside) > _OUTSIDE).any(axis=1).sum())
        num_without += not len(boxes)
        areas = np.array([annotation["area"] for annotation in own], np.float64)
        overlaps = _iou(inside[: max(limits)], corners(own))
        for size, (low, high) in _AREAS.items():
            of_size = (areas >= low) & (areas <= high)
            num_objects[size] += int(of_size.sum())
            for limit in limits:
                covered = np.fromiter(_best_pairs(overlaps[:limit, of_size]), np.float64)
                hits[limit, size] += (covered[:, None] >= np.array(IOUS)).sum(axis=0)
    return Recall(
        figures={
            f"AR{_SUFFIXES[size]}{limit}": _share(float(found.mean()), num_objects[size])
            for (limit, size), found in hits.items()
        },
        recalls={limit: tuple(_share(n, num_objects["all"]) for n in hits[limit, "all"].tolist()) for limit in limits},
        ious=IOUS,
        num_images=len(truth["images"]),
        num_objects=num_objects,
        num_proposals=num_proposals,
        num_outside=num_outside,
        num_without=num_without,
    )


def _best_pairs(overlaps: Float[np.ndarray, "p g"]) -> Iterator[float]:
    """The IoU of each pair of the greedy matching, highest first, as far as it counts."""
    left = overlaps.copy()
    for _ in range(min(left.shape)):
        row, column = np.unravel_index(np.argmax(left), left.shape)
        best = float(left[row, column])
        if best < IOUS[0]:
            return
        yield best
        left[row, :] = left[:, column] = -1.0


def _iou(a: Float[np.ndarray, "p 4"], b: Float[np.ndarray, "g 4"]) -> Float[np.ndarray, "p g"]:
    shared = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.prod(np.maximum(shared, 0), axis=-1)
    union = np.prod(a[:, 2:] - a[:, :2], axis=1)[:, None] + np.prod(b[:, 2:] - b[:, :2], axis=1)[None] - shared
    return shared / np.maximum(union, np.finfo(np.float64).tiny)


def _share(part: int | float, whole: int) -> float:
    return part / whole if whole else -1.0


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<18}" + "".join(f"{cell:>7}" for cell in cells)
