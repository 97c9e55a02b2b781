"""Selective search (Uijlings et al., "Selective Search for Object Recognition", IJCV 2013), computed by OpenCV.

Small segments are merged, the most similar neighbours first, until one is left; the box of every segment on the way is
a proposal. That is done for several colour spaces, sizes of segments and measures of similarity.
"""

import multiprocessing
import os
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from mrcnn_jax.data.dataset import Record
from mrcnn_jax.data.proposals import best_first
from mrcnn_jax.errors import UserError
from mrcnn_jax.interruption import leave_to_main_process
from mrcnn_jax.types import Proposals

Mode = Literal["fast", "quality"]

# R-CNN's: the width to which images are brought, and the smallest side of a box there.
_WIDTH, _MIN_SIDE = 500, 20
# Of a picture that would be higher at that width: the time grows with the square of its area.
_MAX_HEIGHT = 1000
# The first threshold of the segmentation and the step to the next: 50, 100, ... as in R-CNN (OpenCV's default is 150).
_BASE_K, _STEP_K = 50, 50


def propose(image: UInt8[np.ndarray, "h w 3"], mode: Mode = "fast") -> Float32[np.ndarray, "n 4"]:
    """Boxes that may hold an object, best first: xyxy in continuous pixels of the image.

    As in R-CNN (Girshick et al., 2014, `selective_search_boxes.m`), the image (RGB) is first brought to a width of 500
    pixels, smaller ones too (one more than twice as high as wide, to a height of 1,000: R-CNN has no such limit); boxes
    with a side under 20 pixels there are left out, and duplicates. 'fast' takes two
    colour spaces, three thresholds and two similarities, 'quality' five, five and four. (R-CNN, with the authors' own
    program, took two, two and two, and kept all boxes, which were about 2,000 too.)

    The order is the paper's: a random number from 0 to 1 times the place of the box among all, the largest first. The
    place is in the order of areas here, since OpenCV does not tell that of its merges, and the random numbers come from
    the image, so that the same image gives the same bits. (OpenCV's own order differs with every call.)
    """
    height, width = image.shape[:2]
    scale = min(_WIDTH / width, _MAX_HEIGHT / height)
    shape = (max(round(height * scale), 1), max(round(width * scale), 1))
    resized = np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BICUBIC))
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(resized[..., ::-1]))
    switch = {"fast": search.switchToSelectiveSearchFast, "quality": search.switchToSelectiveSearchQuality}[mode]
    switch(base_k=_BASE_K, inc_k=_STEP_K)
    # x, y, width, height, each box once.
    found = np.unique(search.process().reshape(-1, 4), axis=0)
    found = found[(found[:, 2:] >= _MIN_SIDE).all(axis=1)]
    found = found[np.argsort(-found[:, 2] * found[:, 3], kind="stable")]
    draw = np.random.default_rng(zlib.crc32(resized.tobytes())).random(len(found))
    found = found[np.argsort(draw * np.arange(1, len(found) + 1), kind="stable")].astype(np.float64)
    boxes = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)
    return (boxes * np.tile([width / shape[1], height / shape[0]], 2)).astype(np.float32)


def propose_all(
    records: Sequence[Record], mode: Mode, num: int, workers: int
) -> Iterator[tuple[int, Proposals | UserError]]:
    """Image id and the best `num` proposals of each record, in order; an error where its image cannot be read.

    The work is divided among `workers` processes (0: done here), which changes no bit of it.

    Raises:
        UserError: a process died.
    """
    if not workers:
        for record in records:
            yield record.image_id, _propose(record, mode, num)
        return
    pool = ProcessPoolExecutor(
        min(workers, max(len(records), 1)), multiprocessing.get_context("spawn"), initializer=_prepare_worker
    )
    backlog: deque[tuple[int, Future]] = deque()
    try:
        for record in records:
            backlog.append((record.image_id, pool.submit(_propose, record, mode, num)))
            if len(backlog) > 2 * workers:
                image_id, task = backlog.popleft()
                yield image_id, task.result()
        for image_id, task in backlog:
            yield image_id, task.result()
    except BrokenProcessPool:
        raise UserError(
            f"one of {workers} processes died, perhaps for want of memory: use fewer with --workers and run the same "
            "command to go on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _propose(record: Record, mode: Mode, num: int) -> Proposals | UserError:
    try:
        image = record.image()
    except UserError as error:
        return error
    return best_first(propose(image, mode)[:num])


def _prepare_worker() -> None:
    leave_to_main_process()
    # The processes are the parallelism.
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker of a process that was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
