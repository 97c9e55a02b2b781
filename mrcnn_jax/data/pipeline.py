"""From a data set to padded batches: a Grain pipeline whose whole state is the number of the next step.

A batch is a pure function of (data set, config, seed, step): `sampling` says which images it holds, and each image's
augmentation has random numbers of its own, from the seed, the epoch and the image's index. Hosts and workers only
divide the work. A host makes its own rows of every global batch, and all hosts meet the same bucket at the same step.

Each image goes to the bucket (a padded shape) that it fits with the least shrinking, so that a run compiles once a
bucket. Where its resized shape exceeds that bucket it is shrunk further until it fits.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from mrcnn_jax.conventions import rule_of
from mrcnn_jax.data import sampling, transforms
from mrcnn_jax.data.collate import collate, ground_truth, stack
from mrcnn_jax.data.dataset import Dataset, Record
from mrcnn_jax.errors import UserError
from mrcnn_jax.interruption import leave_to_main_process
from mrcnn_jax.types import Batch, GroundTruth, Proposals

# Batches that are being made ahead of the one asked for, in each process.
_AHEAD = 2
# The containers inside a batch.
_PARTS = {"gt": GroundTruth, "proposals": Proposals}
# More steps than any run has; Grain wants an end.
_ENDLESS = 2**40


class Loader(Iterator[Batch]):
    """Batches in order, from a step that can be read and set.

    `step` is the next batch's number. The state holds it and nothing else, so it can be restored with another number
    of hosts or workers. `num_images` are in an epoch, on all hosts together; `num_skipped` had nothing to train on.
    """

    def __init__(
        self,
        read: Callable[[int], Batch],
        length: int,
        num_images: int,
        num_skipped: int = 0,
        num_workers: int = 0,
        step: int = 0,
    ):
        self.step, self.num_images, self.num_skipped = step, num_images, num_skipped
        self._read, self._length, self._num_workers = read, length, num_workers
        self._batches = None

    def __next__(self) -> Batch:
        if self.step >= self._length:
            self.close()
            raise StopIteration
        if self._batches is None:
            self._batches = self._open()
        batch = next(self._batches)
        self.step += 1
        parts = {name: None if batch[name] is None else kind(**batch[name]) for name, kind in _PARTS.items()}
        return Batch(**{**batch, **parts})

    def get_state(self) -> dict[str, int]:
        """What `set_state` needs to go on from here; fit for JSON."""
        return {"step": self.step}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to the step of a state that `get_state` gave."""
        self.close()
        self.step = int(state["step"])

    def close(self) -> None:
        """Ends the workers; the next batch starts them anew."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _open(self) -> grain.DatasetIterator:
        batches = grain.MapDataset.range(self.step, self._length).map(self._read).map(_as_dict)
        if self._num_workers == 0:
            threads = min(_AHEAD, os.cpu_count() or 1)
            return iter(batches.to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=_AHEAD)))
        if not flags.FLAGS.is_parsed():
            # Grain reads absl flags when it starts workers, also in a program that has none.
            flags.FLAGS.mark_as_parsed()
        alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        options = grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=1)
        return iter(batches.to_iter_dataset(alone).mp_prefetch(options, worker_init_fn=_prepare_worker))


@dataclass(frozen=True)
class _Reader:
    """Makes this host's rows of a global batch; travels to worker processes."""

    dataset: Dataset
    plan: sampling.TrainPlan | sampling.EvalPlan
    data: ConfigDict
    preprocess: ConfigDict
    # This host's rows of the global batch.
    rows: slice
    num_keypoints: int = 0
    half_pixel: bool = True
    num_proposals: int = 0

    def train(self, step: int) -> Batch:
        """Global batch `step`, augmented and with ground truth."""
        draw = self.plan.draw(step)
        shape = tuple(self.data.buckets[draw.bucket])
        examples, ids, truths, dropped = [], [], [], []
        for index, epoch in draw.images[self.rows]:
            record = self.dataset.records[index]
            rng = sampling.augmentation_rng(self.plan.seed, epoch, index)
            example = transforms.load_example(record, self.dataset.categories, self.num_keypoints, self.half_pixel)
            example = self._augment(example, rng, shape)
            examples.append(example)
            ids.append(record.image_id)
            truth, excess = ground_truth(example, self.data.max_objects, self.data.mask_size)
            truths.append(truth)
            dropped.append(excess)
        batch = collate(examples, ids, shape, len(examples), self.num_proposals)
        return batch.replace(gt=stack(truths), num_dropped=np.array(dropped, np.int32))

    def evaluate(self, step: int) -> Batch:
        """Global batch `step`, resized and without ground truth; rows that no image fills have valid=False."""
        draw = self.plan.draw(step)
        shape = tuple(self.data.buckets[draw.bucket])
        examples, ids = [], []
        for index, _ in draw.images[self.rows]:
            record = self.dataset.records[index]
            example = transforms.load_example(record)
            examples.append(self._resize(example, self.preprocess.short_side, self.preprocess.max_size, shape))
            ids.append(record.image_id)
        return collate(examples, ids, shape, self.rows.stop - self.rows.start, self.num_proposals)

    def _augment(
        self, example: transforms.Example, rng: np.random.Generator, shape: tuple[int, int]
    ) -> transforms.Example:
        # Most images are enlarged, so it is cheaper to flip them first.
        if rng.random() < self.data.flip:
            example = transforms.flip_horizontal(example)
        if self.data.jitter is None:
            return self._resize(example, int(rng.choice(self.data.short_sides)), self.data.max_size, shape)
        scales, interpolation = tuple(self.data.jitter), self.preprocess.interpolation
        return transforms.large_scale_jitter(example, rng, shape, scales, interpolation)

    def _resize(
        self, example: transforms.Example, short: int, max_size: int, shape: tuple[int, int]
    ) -> transforms.Example:
        size = transforms.resized_shape(*example.image.shape[:2], short, max_size, self.preprocess.rounding)
        return transforms.resize_example(example, transforms.fit_shape(size, shape), self.preprocess.interpolation)


def train_loader(
    dataset: Dataset,
    config: ConfigDict,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Loader:
    """Endless augmented batches with ground truth, as NumPy, from `start_step`.

    Unless `config.data.keep_empty`, images without an object that is not a crowd are left out, as in Detectron2; with
    `config.data.keypoints`, those without such an object that has a labelled keypoint. Where the data set comes with
    proposals, the best `config.data.num_proposals[0]` of each image are in the batch.

    Args:
        dataset: images and annotations.
        config: `data` and `model.preprocess` are read.
        seed: of the order and the augmentation.
        batch_size: of all hosts together.
        start_step: number of the first global batch.
        process_index, process_count: which host this is, of how many.

    Raises:
        UserError: no image is left to train on, or the batch does not divide over the hosts; later, from the loader:
            an image cannot be read.
    """
    data = config.data
    num_keypoints = 0
    if data.keypoints:
        num_keypoints = max((len(category.keypoints) for category in dataset.categories), default=0)
        if not num_keypoints:
            raise UserError(
                f"config.data.keypoints is set but no category of data set {dataset.name!r} has keypoints; "
                "use a keypoint annotation file or set config.data.keypoints=False"
            )
    members = bucket_members(dataset, config, max(data.short_sides), data.max_size, data.keep_empty)
    if not any(len(indices) for indices in members):
        raise UserError(
            f"data set {dataset.name!r} has no image with {wanted(config)}; check the annotations, "
            "or set config.data.keep_empty=True to train on images without objects"
        )
    if config.data.mask_size % 8:
        raise UserError(
            f"config.data.mask_size={config.data.mask_size}: eight pixels are packed in a byte; use a multiple of 8"
        )
    plan = sampling.TrainPlan(members, batch_size, seed)
    rows = _rows(batch_size, process_index, process_count)
    _check_shared_memory(config.data, rows)
    num_proposals = _num_proposals(dataset, config, 0)
    half_pixel = rule_of(config.model) != "torchvision"
    reader = _Reader(
        dataset, plan, config.data, config.model.preprocess, rows, num_keypoints, half_pixel, num_proposals
    )
    num_images = sum(len(indices) for indices in members)
    num_skipped = len(dataset.records) - num_images
    return Loader(reader.train, _ENDLESS, num_images, num_skipped, config.data.num_workers, start_step)


def eval_loader(
    dataset: Dataset,
    config: ConfigDict,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    members: tuple[np.ndarray, ...] | None = None,
) -> Loader:
    """Every image once, in a fixed order, resized as `config.model.preprocess` says; without ground truth.

    Arguments as for `train_loader`; of proposals, the best `config.data.num_proposals[1]` of an image are used. All
    hosts see the same number of batches; the last of a bucket is filled up with images that are not valid. The buckets
    and the workers are `config.data`'s, and `members` the indices of each bucket's images, by default those that fit.

    Raises:
        UserError: the batch does not divide over the hosts; later, from the loader: an image cannot be read.
    """
    rules = config.model.preprocess
    if members is None:
        members = bucket_members(dataset, config, rules.short_side, rules.max_size, keep_empty=True)
    plan = sampling.EvalPlan(members, batch_size)
    rows = _rows(batch_size, process_index, process_count)
    _check_shared_memory(config.data, rows)
    reader = _Reader(dataset, plan, config.data, rules, rows, num_proposals=_num_proposals(dataset, config, 1))
    return Loader(reader.evaluate, len(plan), len(dataset.records), num_workers=config.data.num_workers)


def bucket_members(
    dataset: Dataset, config: ConfigDict, short_side: int, max_size: int, keep_empty: bool
) -> tuple[np.ndarray, ...]:
    """The indices of the images of each bucket; with `keep_empty` False, only of those with something to train on.

    An image resized to `short_side` and at most `max_size` goes where it has to shrink least, then to the smallest such
    bucket, then to the first. Every record is looked at, except where there is one bucket and nothing to leave out.
    """
    buckets = [tuple(bucket) for bucket in config.data.buckets]
    if len(buckets) == 1 and keep_empty:
        return (np.arange(len(dataset.records)),)
    members = [[] for _ in buckets]
    for index in range(len(dataset.records)):
        record = dataset.records[index]
        if not keep_empty and not _teaches(record, config.data.keypoints):
            continue
        height, width = transforms.resized_shape(
            record.height, record.width, short_side, max_size, config.model.preprocess.rounding
        )
        cost = [(max(height / h, width / w, 1.0), h * w) for h, w in buckets]
        members[cost.index(min(cost))].append(index)
    return tuple(np.array(indices, np.int64) for indices in members)


def wanted(config: ConfigDict) -> str:
    """What an image needs to be trained on, unless `config.data.keep_empty`."""
    return "an object with a labelled keypoint" if config.data.keypoints else "an object to train on"


def _teaches(record: Record, keypoints: bool) -> bool:
    objects = ~record.crowd
    if not keypoints:
        return bool(objects.any())
    # Detectron2's MIN_KEYPOINTS_PER_IMAGE of 1.
    return record.keypoints is not None and bool((record.keypoints[objects, :, 2] > 0).any())


def _num_proposals(dataset: Dataset, config: ConfigDict, place: int) -> int:
    """How many proposals an image gets: 0 where the data set has none."""
    if not len(dataset.records) or dataset.records[0].proposals is None:
        return 0
    num = config.data.num_proposals[place]
    if num < 1:
        raise UserError(f"config.data.num_proposals={tuple(config.data.num_proposals)}: give 1 or more for each")
    return num


def _as_dict(batch: Batch) -> dict:
    # Grain fills the tree with its own leaves on the way between processes, which a typed container need not take.
    parts = {name: getattr(batch, name) for name in _PARTS}
    return {**vars(batch), **{name: None if part is None else vars(part) for name, part in parts.items()}}


def _rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise UserError(f"a batch of {batch_size} does not divide over {process_count} hosts; use a multiple")
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)


def _check_shared_memory(data: ConfigDict, rows: slice) -> None:
    """Workers hand batches over in /dev/shm, and a worker that finds it full dies of SIGBUS without a word."""
    memory = Path("/dev/shm")
    if not data.num_workers or not memory.is_dir():
        return
    batch = (rows.stop - rows.start) * max(height * width for height, width in data.buckets) * 3
    # One waiting and one in the making for each worker, and those that the main process holds.
    needed, free = batch * (2 * data.num_workers + _AHEAD), shutil.disk_usage(memory).free
    if needed > free:
        raise UserError(
            f"config.data.num_workers={data.num_workers} needs {needed / 2**20:.0f} MiB of shared memory and /dev/shm "
            f"has {free / 2**20:.0f}; set config.data.num_workers=0 or enlarge it (docker run --shm-size)"
        )


def _prepare_worker(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    leave_to_main_process()
    # The workers are the parallelism; OpenCV's own threads in each would only fight over the cores.
    cv2.setNumThreads(1)
