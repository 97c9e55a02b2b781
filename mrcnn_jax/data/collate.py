"""Examples of any size to arrays of one shape: objects into slots, images into a padded batch."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

import numpy as np

from mrcnn_jax.data import transforms
from mrcnn_jax.types import Batch, GroundTruth, Proposals

Container = TypeVar("Container", GroundTruth, Proposals)


def ground_truth(example: transforms.Example, max_objects: int, mask_size: int) -> tuple[GroundTruth, int]:
    """One image's objects in `max_objects` slots, and how many did not fit: the largest boxes are kept, in file order.

    Masks are left out where `mask_size` is 0. A crowd takes a slot but needs no mask, since it is never a positive.
    An annotated mask without a pixel counts as none.
    """
    sides = example.boxes[:, 2:] - example.boxes[:, :2]
    rows = np.sort(np.argsort(-sides[:, 0] * sides[:, 1], kind="stable")[:max_objects])
    count = len(rows)

    def padded(values: np.ndarray) -> np.ndarray:
        slots = np.zeros((max_objects, *values.shape[1:]), values.dtype)
        slots[:count] = values[rows]
        return slots

    masks = has_mask = None
    if mask_size:
        bitmaps = np.zeros((len(example.boxes), mask_size, mask_size), bool)
        for row in rows.tolist():
            if example.segmentations[row] is not None and not example.crowd[row]:
                bitmaps[row] = transforms.object_mask(example, row, mask_size)
        masks, has_mask = padded(np.packbits(bitmaps, axis=-1)), padded(bitmaps.any(axis=(1, 2)))
    truth = GroundTruth(
        boxes=padded(example.boxes),
        classes=padded(example.classes.astype(np.int32)),
        valid=np.arange(max_objects) < count,
        crowd=padded(example.crowd),
        masks=masks,
        has_mask=has_mask,
        keypoints=None if example.keypoints is None else padded(example.keypoints),
    )
    return truth, len(example.boxes) - count


def fit_proposals(proposals: Proposals, size: tuple[int, int], num: int) -> Proposals:
    """The best `num` of one image's proposals, clipped to its height and width; those that leave no area are dropped.

    As Detectron2's `transform_proposals` with its `min_box_size` of 0. Slots that are left are zero and not valid.
    """
    boxes = np.clip(proposals.boxes, 0, np.array([*size[::-1], *size[::-1]], np.float32))
    rows = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1) & proposals.valid)[:num]
    fitted = Proposals(np.zeros((num, 4), np.float32), np.zeros(num, np.float32), np.arange(num) < len(rows))
    fitted.boxes[: len(rows)], fitted.scores[: len(rows)] = boxes[rows], proposals.scores[rows]
    return fitted


def collate(
    examples: list[transforms.Example], ids: list[int], shape: tuple[int, int], slots: int, num_proposals: int = 0
) -> Batch:
    """Images padded with zeros to `shape`, and the batch to `slots` rows.

    With `num_proposals` above 0, that many proposals an image come along, as `fit_proposals` chooses them.
    """
    # A resize that is not rounded gives float32.
    image = np.zeros((slots, *shape, 3), examples[0].image.dtype if examples else np.uint8)
    size = np.zeros((slots, 2), np.int32)
    original_size = np.zeros((slots, 2), np.int32)
    image_id = np.zeros(slots, np.int64)
    for row, (example, number) in enumerate(zip(examples, ids, strict=True)):
        height, width = example.image.shape[:2]
        image[row, :height, :width] = example.image
        size[row], original_size[row], image_id[row] = (height, width), example.source_size, number
    proposals = None
    if num_proposals:
        found = [fit_proposals(one.proposals, one.image.shape[:2], num_proposals) for one in examples]
        proposals = stack([*found, *[no_proposals(num_proposals)] * (slots - len(examples))])
    return Batch(image, size, original_size, image_id, valid=np.arange(slots) < len(examples), proposals=proposals)


def no_proposals(num: int) -> Proposals:
    """`num` slots, none of which is valid."""
    return Proposals(np.zeros((num, 4), np.float32), np.zeros(num, np.float32), np.zeros(num, bool))


def stack(images: Sequence[Container]) -> Container:
    """The ground truth or the proposals of several images as one batch."""
    kind = type(images[0])
    columns = {field.name: [getattr(image, field.name) for image in images] for field in fields(kind)}
    return kind(**{name: None if values[0] is None else np.stack(values) for name, values in columns.items()})
