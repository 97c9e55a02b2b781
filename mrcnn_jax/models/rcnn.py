"""The R-CNN family: networks over batches, geometry over one image, `vmap` between them.

    image -> backbone -> FPN -> RPN -> proposals -> RoIAlign -> box stage            (Faster R-CNN)
                                                 -> RoIAlign -> mask, ... tasks      (Mask R-CNN)

`losses` and `detect` are the two programs. A family member is this module with other parts.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, vmap

from mrcnn_jax.models.box import BoxStage
from mrcnn_jax.models.pixels import Pixels
from mrcnn_jax.models.pool import Pooler
from mrcnn_jax.models.rpn import RPN
from mrcnn_jax.ops.sample import sample_rois
from mrcnn_jax.types import Batch, Detections, Proposals, Pyramid, Samples

# {name: (total, weight)}: divide once, after the sums over images and devices.
Losses = dict[str, tuple[Array, Array]]


class RCNN(nn.Module):
    """A two-stage detector. `tasks` maps a name to a head that works on the positives and on the final detections."""

    pixels: Pixels
    backbone: nn.Module
    fpn: nn.Module
    rpn: RPN
    pooler: Pooler
    box: BoxStage
    tasks: Mapping[str, nn.Module]
    num_samples: int = 512
    positive_fraction: float = 0.25
    positive_iou: float = 0.5

    def losses(self, batch: Batch, key: Array | None) -> tuple[Losses, Losses]:
        """The loss terms of a batch and, in the same form, what is worth watching.

        Each image draws from `key` folded with its id, so its samples do not depend on the batch or device it is on.
        With `key` None the samplers take the first candidates, as the reference implementations do with a fixed
        permutation.
        """
        rpn_key, roi_key = (None, None) if key is None else jax.random.split(key)
        pyramid = self.features(batch, train=True)
        out = self.rpn(pyramid, batch.image.shape[1:3])
        losses = vmap(self.rpn.losses)(out, batch.gt, _per_image(rpn_key, batch))
        proposals = self.propose(pyramid, out, batch, train=True)

        samples = vmap(self.sample)(_per_image(roi_key, batch), proposals, batch.gt)
        box = self.read(self.box, pyramid, samples.boxes, samples.valid, train=True)
        losses |= vmap(self.box.losses)(box, samples, batch.gt)

        for task in self.tasks.values():
            first = self.positives(samples, task.num_samples)
            found = self.read(task, pyramid, first.boxes, first.positive, train=True)
            losses |= vmap(task.losses)(found, first, batch.gt)
        watched = vmap(_watch)(box.logits, samples, proposals)
        if batch.num_dropped is not None:
            watched["dropped_objects"] = (batch.num_dropped.astype(jnp.float32), jnp.ones(batch.valid.shape))
        return _over_images(losses, batch.valid), _over_images(watched, batch.valid)

    def detect(self, batch: Batch) -> Detections:
        """The best detections of each image, in pixels of the padded image."""
        pyramid = self.features(batch, train=False)
        out = self.rpn(pyramid, batch.image.shape[1:3])
        proposals = self.propose(pyramid, out, batch, train=False)
        box = self.read(self.box, pyramid, proposals.boxes, proposals.valid, train=False)
        detections = vmap(self.box.detect)(box, proposals, batch.size.astype(jnp.float32))
        for task in self.tasks.values():
            found = self.read(task, pyramid, detections.boxes, detections.valid, train=False)
            detections = vmap(task.detect)(found, detections)
        return detections

    def features(self, batch: Batch, *, train: bool) -> Pyramid:
        """The feature pyramid of a batch of uint8 images."""
        # A row without an image has no cell, so that no statistics see it.
        size = jnp.where(jnp.asarray(batch.valid)[:, None], jnp.asarray(batch.size), 0)
        image, canvas = self.pixels(jnp.asarray(batch.image), size)
        return self.fpn(self.backbone(image, canvas, train), train)

    def propose(self, pyramid: Pyramid, out, batch: Batch, *, train: bool) -> Proposals:
        """Proposals from the RPN's output."""
        per_cell = len(self.rpn.ratios)
        sizes = [
            pyramid[level][0].shape[1] * pyramid[level][0].shape[2] * per_cell * len(scales)
            for level, scales in zip(sorted(pyramid), self.rpn.sizes, strict=True)
        ]
        size = batch.size.astype(jnp.float32)
        return vmap(lambda out, size: self.rpn.propose(out, size, sizes, train=train))(out, size)

    def read(self, part: nn.Module, pyramid: Pyramid, boxes: Array, valid: Array, *, train: bool):
        """What a head says of the RoIs of a batch."""
        return part(self.pooler(pyramid, boxes, valid, part.size), valid, train)

    def sample(self, key: Array | None, proposals: Proposals, gt) -> Samples:
        """The RoIs of ONE image to train on, positives first."""
        return sample_rois(
            key, proposals, gt, num=self.num_samples, positive_fraction=self.positive_fraction, iou=self.positive_iou
        )

    def positives(self, samples: Samples, limit: int) -> Samples:
        """The first slots of a batch that can hold positives: a slice that is static, since positives come first."""
        slots = min(limit, int(self.num_samples * self.positive_fraction))
        return jax.tree.map(lambda x: x[:, :slots], samples)

    def touch(self, batch: Batch) -> None:
        """Call every network once, so that `init` makes the parameters without compiling the geometry."""
        pyramid = self.features(batch, train=False)
        self.rpn(pyramid, batch.image.shape[1:3])
        channels = pyramid[min(pyramid)][0].shape[-1]
        for part in (self.box, *self.tasks.values()):
            part(jnp.zeros((1, 1, part.size, part.size, channels)), jnp.ones((1, 1), bool), train=False)


def _per_image(key: Array | None, batch: Batch) -> Array | None:
    return None if key is None else vmap(jax.random.fold_in, (None, 0))(key, batch.image_id)


def _over_images(terms: Losses, valid: Array) -> Losses:
    """Sum totals and weights over the images that are real."""
    return jax.tree.map(lambda x: jnp.sum(jnp.where(valid, x, 0.0)), terms)


def _watch(logits: Array, samples: Samples, proposals: Proposals) -> Losses:
    """Figures that tell whether ONE image trains well, each as (total, weight)."""
    one = jnp.float32(1)
    num_positive = jnp.sum(samples.positive, dtype=jnp.float32)
    right = jnp.argmax(logits, axis=-1) == samples.classes
    return {
        "positives": (num_positive, one),
        "proposals": (jnp.sum(proposals.valid, dtype=jnp.float32), one),
        "accuracy": (jnp.sum(right & samples.valid, dtype=jnp.float32), jnp.sum(samples.valid, dtype=jnp.float32)),
        "positive_accuracy": (jnp.sum(right & samples.positive, dtype=jnp.float32), num_positive),
    }
