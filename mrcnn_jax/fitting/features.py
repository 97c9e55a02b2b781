"""Passes over the region features of a data set, for the fits that come after the network."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrcnn_jax import distributed
from mrcnn_jax.data import pipeline, proposals
from mrcnn_jax.data.dataset import Dataset, Record
from mrcnn_jax.data.overlaps import pairwise_iou
from mrcnn_jax.fitting.regions import Regions, label_regions
from mrcnn_jax.models.rcnn import RCNN
from mrcnn_jax.types import Proposals


class RegionFeatures:
    """Starts passes over the regions of a data set: of each image its ground-truth boxes and its proposals.

    Args:
        model: without an RPN.
        variables: of the model, on the devices of `mesh`.
        dataset: records with proposals, of which the best `config.data.num_proposals[0]` are used.
        config: the experiment. Images are resized as for inference. They come in an order that `config.seed` draws,
            always the same.
        which: the features that class scores are read from, or those that box deltas are read from.
    """

    def __init__(
        self,
        model: RCNN,
        variables: dict,
        dataset: Dataset,
        config: ConfigDict,
        mesh: Mesh,
        which: Literal["scores", "deltas"],
    ):
        self._dataset = dataset.subset(np.random.default_rng(config.seed).permutation(len(dataset.records)))
        self._truths = {record.image_id: _objects(record) for record in dataset.records}
        self._variables, self._mesh, self._config = variables, mesh, config
        part = ("scores", "deltas").index(which)
        self._compiled = distributed.data_parallel(
            lambda variables, batch: model.apply(variables, batch, method="region_features")[part], mesh
        )

    def __call__(self, *, over: float | None = None, first: int | None = None) -> Iterator[Regions]:
        """The regions of every image.

        Args:
            over: the IoU with some object up to which proposals are left out, and not seen by the network; those very
                near to it are kept. None leaves out none.
            first: how many images; None is all.
        """
        config, truths = self._config.copy_and_resolve_references().unlock(), self._truths
        dataset, num = self._dataset.subset(range(len(self._dataset.records))[:first]), config.data.num_proposals[0]

        def boxes_of(record: Record) -> np.ndarray:
            objects, _ = truths[record.image_id]
            own = np.zeros((0, 4), np.float32) if record.proposals is None else record.proposals.boxes[:num]
            if over is not None:
                # Boxes are rounded once more when they are resized.
                own = own[pairwise_iou(own, objects).max(axis=1, initial=0) > over - 1e-3]
            return np.concatenate([objects, own])

        def regions_of(record: Record) -> Proposals:
            boxes = boxes_of(record)
            return Proposals(boxes, np.arange(len(boxes), 0, -1, dtype=np.float32), np.ones(len(boxes), bool))

        # As many for each image, since programs are compiled for a number of regions.
        config.data.num_proposals = (num, max((len(boxes_of(record)) for record in dataset.records), default=0))
        batch_size = distributed.fill_devices(config.eval.batch_size, self._mesh)
        with closing(pipeline.eval_loader(proposals.attach(dataset, regions_of), config, batch_size)) as batches:
            for batch in batches:
                found: Any = batch.proposals
                on_device = self._compiled(self._variables, distributed.shard(batch, self._mesh))
                features = np.asarray(jax.device_get(on_device), np.float32)
                for row in np.flatnonzero(batch.valid):
                    classes, valid = truths[int(batch.image_id[row])][1], found.valid[row]
                    # As resized: in the pixels of the network, where an object keeps some area too.
                    boxes, num_objects = found.boxes[row][valid], len(classes)
                    yield label_regions(
                        boxes[num_objects:], features[row][valid], boxes[:num_objects], classes, dataset.num_classes
                    )


def _objects(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and classes of what a detector has to find."""
    wanted = ~record.crowd if record.difficult is None else ~(record.crowd | record.difficult)
    return record.boxes[wanted], record.classes[wanted]
