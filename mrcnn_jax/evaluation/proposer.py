"""Region proposals of a trained RPN for the images of a data set."""

from collections.abc import Iterator

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from mrcnn_jax import distributed
from mrcnn_jax.data import pipeline
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.types import Batch, Proposals


class Proposer:
    """Finds proposals on all devices; compiles once a bucket, however often it is called.

    The batches are those of `pipeline.eval_loader` for `config`; how many proposals an image gets is the RPN's own
    affair (`post_nms`).
    """

    def __init__(self, model: nn.Module, config: ConfigDict, mesh: Mesh):
        self._config, self._mesh = config, mesh
        self._find = distributed.data_parallel(
            lambda variables, batch: model.apply(variables, batch, method="find_proposals"), mesh
        )

    def __call__(self, variables: dict, dataset: Dataset) -> Iterator[tuple[int, Proposals]]:
        """Image id and proposals of every image once, by bucket: in pixels of the original image, best first.

        Over several hosts each yields those of its own images. Scores are logits. The device works on a batch while
        the host fetches the one before.

        Raises:
            UserError: the model has no RPN, or an image cannot be read.
        """
        batch_size = distributed.fill_devices(self._config.eval.batch_size, self._mesh)
        loader = pipeline.eval_loader(dataset, self._config, batch_size, jax.process_index(), jax.process_count())
        running = None
        try:
            for batch in loader:
                found = self._find(variables, distributed.shard(batch, self._mesh))
                if running:
                    yield from _of_images(*running)
                running = batch, found
            if running:
                yield from _of_images(*running)
        finally:
            loader.close()


def with_num_proposals(config: ConfigDict, num: int) -> ConfigDict:
    """A copy of a model config whose RPN gives up to `num` proposals an image at inference."""
    config = config.copy_and_resolve_references().unlock()
    # What is kept before the suppression, on each level, is at least what is wanted after it.
    config.rpn.pre_nms = (config.rpn.pre_nms[0], max(config.rpn.pre_nms[1], num))
    config.rpn.post_nms = (config.rpn.post_nms[0], num)
    return config


def _of_images(batch: Batch, found: Proposals) -> Iterator[tuple[int, Proposals]]:
    found = distributed.fetch(found)
    for row in np.flatnonzero(np.asarray(batch.valid)):
        one = jax.tree.map(lambda leaf, row=row: leaf[row], found)
        size, original = np.asarray(batch.size[row]), np.asarray(batch.original_size[row])
        yield int(batch.image_id[row]), _rescaled(one, size.astype(np.float32), original.astype(np.float32))


def _rescaled(found: Proposals, size: Float[np.ndarray, " 2"], original: Float[np.ndarray, " 2"]) -> Proposals:
    """The valid proposals in pixels of the original image, clipped to it; those that become empty are dropped."""
    boxes = found.boxes * np.tile((original / size)[::-1], 2)
    boxes = np.clip(boxes, 0, np.tile(original[::-1], 2))
    keep = found.valid & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return Proposals(boxes[keep], found.scores[keep], keep[keep])
