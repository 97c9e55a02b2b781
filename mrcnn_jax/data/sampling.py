"""Which images make up which batch, as pure functions of the seed and the step.

Nothing here is iterated to find a place: batch number `step` is computed directly, so a run that starts again at any
step, with any number of hosts and workers, sees what it would have seen.

Each bucket (a padded shape) has its own endless stream: its images in a new order every epoch, one epoch after the
other. Its batches cut that stream into equal pieces. The images left over at the end of an epoch are thus the head of
the next epoch's first batch, and within an epoch no image is lost or repeated. An epoch of the whole run holds the
batches that the buckets complete in it, shuffled.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Domains of random numbers, so that an order never shares its stream with an augmentation.
_ORDER, _AUGMENTATION = 1, 2


@dataclass(frozen=True)
class Draw:
    """The images of one global batch, all of one bucket; `images` is short where the batch is to be filled up."""

    bucket: int
    # (index in the data set, epoch)
    images: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TrainPlan:
    """An endless sequence of full batches over `members`, the data-set indices of each bucket."""

    members: tuple[np.ndarray, ...]
    batch_size: int
    seed: int

    def draw(self, step: int) -> Draw:
        """The images of global batch `step`, 0, 1, ..."""
        epoch = self.epoch_of(step)
        order = _order(self.seed, epoch, len(self.members), self._completed(epoch + 1) - self._completed(epoch))
        place = int(order[step - self._completed(epoch)])
        for bucket, indices in enumerate(self.members):
            first = epoch * len(indices) // self.batch_size
            count = (epoch + 1) * len(indices) // self.batch_size - first
            if place < count:
                return Draw(bucket, self._stream(bucket, (first + place) * self.batch_size))
            place -= count
        raise AssertionError("the counts of the buckets add up to the batches of the epoch")

    def epoch_of(self, step: int) -> int:
        """The epoch that batch `step` counts to."""
        total = sum(len(indices) for indices in self.members)
        # Never too late, since the buckets carry images over; too early by as much.
        epoch = step * self.batch_size // total
        while self._completed(epoch + 1) <= step:
            epoch += 1
        return epoch

    def _completed(self, epochs: int) -> int:
        """Batches filled after `epochs` epochs."""
        return sum(epochs * len(indices) // self.batch_size for indices in self.members)

    def _stream(self, bucket: int, start: int) -> tuple[tuple[int, int], ...]:
        indices = self.members[bucket]
        images = []
        for position in range(start, start + self.batch_size):
            epoch, offset = divmod(position, len(indices))
            images.append((int(indices[_order(self.seed, epoch, bucket, len(indices))[offset]]), epoch))
        return tuple(images)


@dataclass(frozen=True)
class EvalPlan:
    """Every image once, in the data set's order within its bucket; the last batch of a bucket may be short."""

    members: tuple[np.ndarray, ...]
    batch_size: int

    def __len__(self) -> int:
        return sum(-(-len(indices) // self.batch_size) for indices in self.members)

    def draw(self, step: int) -> Draw:
        """The images of global batch `step`, 0 <= step < len(self)."""
        for bucket, indices in enumerate(self.members):
            count = -(-len(indices) // self.batch_size)
            if step < count:
                chosen = indices[step * self.batch_size : (step + 1) * self.batch_size]
                return Draw(bucket, tuple((int(index), 0) for index in chosen))
            step -= count
        raise IndexError(f"step beyond the last of {len(self)} batches")


def augmentation_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random numbers for one image in one epoch, whatever the host, worker or batch that it lands in."""
    return np.random.default_rng([_AUGMENTATION, seed, epoch, index])


@lru_cache(maxsize=64)
def _order(seed: int, epoch: int, stream: int, length: int) -> np.ndarray:
    return np.random.default_rng([_ORDER, seed, epoch, stream]).permutation(length)
