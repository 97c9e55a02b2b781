"""Passes over the region features of a data set, for the fits that come after the network."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrcnn_jax import distributed
from mrcnn_jax.data import pipeline, proposals
from mrcnn_jax.data.dataset import Dataset, Record
from mrcnn_jax.fitting.regions import Regions, label_regions
from mrcnn_jax.models.rcnn import RCNN
from mrcnn_jax.types import Proposals


def region_passes(
    model: RCNN,
    variables: dict,
    dataset: Dataset,
    config: ConfigDict,
    mesh: Mesh,
    which: Literal["scores", "deltas"],
) -> Callable[[], Iterator[Regions]]:
    """What starts a pass over the regions of every image: its ground-truth boxes and the proposals that it came with.

    Args:
        model: without an RPN.
        variables: of the model, on the devices of `mesh`.
        dataset: records with proposals, of which the best `config.data.num_proposals[0]` are used.
        config: the experiment. Images are resized as for inference. They come in an order that `config.seed` draws,
            always the same.
        which: the features that class scores are read from, or those that box deltas are read from.
    """
    order = np.random.default_rng(config.seed).permutation(len(dataset.records))
    dataset = dataset.subset(order)
    truths = {record.image_id: _objects(record) for record in dataset.records}
    most = max((len(classes) for _, classes in truths.values()), default=0)
    num = config.data.num_proposals[0]
    config = config.copy_and_resolve_references().unlock()
    config.data.num_proposals = (num, num + most)

    def regions_of(record: Record) -> Proposals:
        own = np.zeros((0, 4), np.float32) if record.proposals is None else record.proposals.boxes[:num]
        boxes = np.concatenate([truths[record.image_id][0], own])
        return Proposals(boxes, np.arange(len(boxes), 0, -1, dtype=np.float32), np.ones(len(boxes), bool))

    dataset = proposals.attach(dataset, regions_of)
    part = ("scores", "deltas").index(which)
    compiled = distributed.data_parallel(
        lambda variables, batch: model.apply(variables, batch, method="region_features")[part], mesh, batch_outputs=True
    )
    batch_size = distributed.fill_devices(config.eval.batch_size, mesh)

    def one_pass() -> Iterator[Regions]:
        with closing(pipeline.eval_loader(dataset, config, batch_size)) as batches:
            for batch in batches:
                found: Any = batch.proposals
                features = np.asarray(jax.device_get(compiled(variables, distributed.shard(batch, mesh))), np.float32)
                for row in np.flatnonzero(batch.valid):
                    classes, valid = truths[int(batch.image_id[row])][1], found.valid[row]
                    # As resized: in the pixels of the network, where an object keeps some area too.
                    boxes, num_objects = found.boxes[row][valid], len(classes)
                    yield label_regions(
                        boxes[num_objects:], features[row][valid], boxes[:num_objects], classes, dataset.num_classes
                    )

    return one_pass


def _objects(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and classes of what a detector has to find."""
    wanted = ~record.crowd if record.difficult is None else ~(record.crowd | record.difficult)
    return record.boxes[wanted], record.classes[wanted]
