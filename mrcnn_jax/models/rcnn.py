"""The R-CNN family: networks over batches, geometry over one image, `vmap` between them.

    image -> backbone -> FPN -> RPN -> proposals -> RoIAlign -> box stage            (Faster R-CNN)
                                                 -> RoIAlign -> mask, ... tasks      (Mask R-CNN)

`losses` and `detect` are the two programs. A family member is this module with other parts: proposals that come with
the batch instead of an RPN (Fast R-CNN); several box stages, each on the boxes of the one before (Cascade R-CNN); no
FPN, and a stage of the backbone as the trunk that all RoIs pass (C4); no backbone, and a whole network as the trunk of
regions of the image (R-CNN); no box stage (RPN alone).
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax, vmap
from jaxtyping import Bool, Float

from mrcnn_jax.errors import UserError
from mrcnn_jax.models.box import BoxStage
from mrcnn_jax.models.pixels import Pixels
from mrcnn_jax.models.pool import Pooler, over_rois
from mrcnn_jax.models.rpn import RPN, RPNOutput
from mrcnn_jax.ops.sample import label_rois, sample_rois
from mrcnn_jax.types import Batch, Detections, GroundTruth, Proposals, Pyramid, Samples

# {name: (total, weight)}: divide once, after the sums over images and devices.
Losses = dict[str, tuple[Array, Array]]

# Regions of an image that pass a whole network at one time.
_CHUNK = 64


class RCNN(nn.Module):
    """A two-stage detector. `tasks` maps a name to a head that works on the positives and on the final detections."""

    pixels: Pixels
    # None: RoIs are read from the image.
    backbone: nn.Module | None
    # None: RoIs are read from the backbone's last map.
    fpn: nn.Module | None
    # None: proposals come with the batch.
    rpn: RPN | None
    pooler: Pooler
    # A network that every pooled RoI passes before the heads, once for all of them; or None.
    trunk: nn.Module | None
    # None of them: proposals are what is detected.
    box: tuple[BoxStage, ...]
    tasks: Mapping[str, nn.Module]
    num_samples: int = 512
    positive_fraction: float = 0.25
    # From which IoU on a proposal may be a background sample.
    background_iou: float = 0.0

    def losses(self, batch: Batch, key: Array | None) -> tuple[Losses, Losses]:
        """The loss terms of a batch and, in the same form, what is worth watching.

        Each image draws from `key` folded with its id, so its samples do not depend on the batch or device it is on.
        With `key` None the samplers take the first candidates, as the reference implementations do with a fixed
        permutation. Raises `UserError` where the ground truth or the proposals that the model needs are missing.
        """
        rpn_key, roi_key = (None, None) if key is None else map(_per_image, jax.random.split(key), (batch, batch))
        pyramid = self.features(batch, train=True)
        losses = {}
        if self.rpn is None:
            proposals = _given(batch)
        else:
            out = self.rpn(pyramid, batch.image.shape[1:3])
            losses = vmap(self.rpn.losses)(out, batch.gt, batch.size, rpn_key)
            proposals = self.propose(self.rpn, pyramid, out, batch, train=True)
        watched = vmap(_watch_proposals)(proposals)
        if batch.num_dropped is not None:
            watched["dropped_objects"] = (batch.num_dropped.astype(jnp.float32), jnp.ones(batch.valid.shape))
        if not self.box:
            return _over_images(losses, batch.valid), _over_images(watched, batch.valid)
        samples = vmap(self.sample)(roi_key, proposals, batch.gt)

        box_losses, regions, logits = self.box_losses(pyramid, samples, batch, roi_key)
        losses |= box_losses
        for task in self.tasks.values():
            positives = self.positives(samples, task.num_samples)
            if self.trunk is None:
                own = self.regions(task, pyramid, positives.boxes, positives.positive, train=True)
            else:
                own = regions[:, : positives.positive.shape[1]]
            found = task(own, positives.positive, train=True)
            losses |= vmap(task.losses)(found, positives, batch.gt)
        watched |= vmap(_watch)(logits, samples)
        return _over_images(losses, batch.valid), _over_images(watched, batch.valid)

    def box_losses(
        self, pyramid: Pyramid, samples: Samples, batch: Batch, key: Array | None
    ) -> tuple[Losses, Array, Array]:
        """The losses of the box stages, and of the first one the RoI features and the logits.

        A later stage trains on the boxes that the one before made of the same samples, labelled anew at its own IoU
        (Cai & Vasconcelos, "Cascade R-CNN", 2018).
        """
        losses, rois, regions, logits = {}, samples, [], []
        for i, stage in enumerate(self.box):
            regions.append(self.regions(stage, pyramid, rois.boxes, rois.valid, train=True))
            out = stage(_scale_gradient(regions[i], 1 / len(self.box)), rois.valid, True, _next(key, i))
            logits.append(out.logits)
            suffix = f"_{i + 1}" if len(self.box) > 1 else ""
            losses |= {f"{name}{suffix}": loss for name, loss in vmap(stage.losses)(out, rois, batch.gt).items()}
            if i + 1 < len(self.box):
                boxes, valid = vmap(stage.refine)(out, rois.boxes, rois.valid, batch.size)
                rois = vmap(label_rois, (0, 0, 0, None))(boxes, valid, batch.gt, self.box[i + 1].iou)
        return losses, regions[0], logits[0]

    def detect(self, batch: Batch) -> Detections:
        """The best detections of each image, in pixels of the padded image.

        Raises `UserError` for a model without an RPN where the batch has no proposals.
        """
        pyramid = self.features(batch, train=False)
        rois = self.find_proposals(batch, pyramid)
        if not self.box:
            return _as_detections(rois)
        scores = jnp.float32(0)
        for i, stage in enumerate(self.box):
            regions = self.regions(stage, pyramid, rois.boxes, rois.valid, train=False)
            out = stage(regions, rois.valid, train=False)
            scores = scores + stage.scores(out.logits) / len(self.box)
            if i + 1 < len(self.box):
                boxes, _ = vmap(stage.refine)(out, rois.boxes, rois.valid, batch.size)
                rois = rois.replace(boxes=boxes)
        detections = vmap(self.box[-1].detect)(scores, out.deltas, rois, batch.size.astype(jnp.float32))
        return self.describe(batch, detections, pyramid)

    def describe(self, batch: Batch, detections: Detections, pyramid: Pyramid | None = None) -> Detections:
        """Detections with what the tasks tell of them: masks, keypoints."""
        pyramid = self.features(batch, train=False) if pyramid is None else pyramid
        for task in self.tasks.values():
            regions = self.regions(task, pyramid, detections.boxes, detections.valid, train=False)
            detections = vmap(task.detect)(task(regions, detections.valid, train=False), detections)
        return detections

    def find_proposals(self, batch: Batch, pyramid: Pyramid | None = None) -> Proposals:
        """The RoIs that detections are looked for in: the RPN's or, for a model without one, the batch's."""
        if self.rpn is None:
            return _given(batch)
        pyramid = self.features(batch, train=False) if pyramid is None else pyramid
        out = self.rpn(pyramid, batch.image.shape[1:3])
        return self.propose(self.rpn, pyramid, out, batch, train=False)

    def region_features(self, batch: Batch) -> tuple[Float[Array, "b p f"], Float[Array, "b p f2"]]:
        """What the class scores of each proposal are read from, and what its deltas are: for later fits (R-CNN)."""
        pyramid, stage = self.features(batch, train=False), self.box[0]
        rois = self.find_proposals(batch, pyramid)
        pooled = self.regions(stage, pyramid, rois.boxes, rois.valid, train=False)
        features = stage.features(pooled, rois.valid, train=False)
        return features, pooled.reshape(*rois.valid.shape, -1) if stage.predictor.pooled_deltas else features

    def features(self, batch: Batch, *, train: bool) -> Pyramid:
        """The maps that RPN and heads read."""
        # A row without an image has no cell, so that no statistics see it.
        size = jnp.where(jnp.asarray(batch.valid)[:, None], jnp.asarray(batch.size), 0)
        image, canvas = self.pixels(jnp.asarray(batch.image), size)
        if self.backbone is None:
            return {0: (image, canvas)}
        maps = self.backbone(image, canvas, train)
        return {max(maps): maps[max(maps)]} if self.fpn is None else self.fpn(maps, train)

    def propose(self, rpn: RPN, pyramid: Pyramid, out: RPNOutput, batch: Batch, *, train: bool) -> Proposals:
        """Proposals from the RPN's output."""
        per_cell = len(rpn.ratios)
        sizes = [
            pyramid[level][0].shape[1] * pyramid[level][0].shape[2] * per_cell * len(scales)
            for level, scales in zip(sorted(pyramid), rpn.sizes, strict=True)
        ]
        size = batch.size.astype(jnp.float32)
        return vmap(lambda out, size: rpn.propose(out, size, sizes, train=train))(out, size)

    def regions(
        self, part: nn.Module, pyramid: Pyramid, boxes: Float[Array, "b r 4"], valid: Bool[Array, "b r"], *, train: bool
    ) -> Float[Array, "b r s s c"]:
        """The features of RoIs, as large as `part`, a box stage or a task, reads them."""

        def read(module: RCNN, boxes: Array, valid: Array) -> Array:
            pooled = module.pooler(pyramid, boxes, valid, part.size)
            return pooled if module.trunk is None else over_rois(module.trunk, pooled, valid, train)

        # The inner maps of a whole network for thousands of regions do not fit into memory: one chunk after the other.
        return read(self, boxes, valid) if train or self.backbone is not None else _in_chunks(self, read, boxes, valid)

    def sample(self, key: Array | None, proposals: Proposals, gt: GroundTruth) -> Samples:
        """The RoIs of ONE image to train on, positives first."""
        return sample_rois(
            key, proposals, gt, num=self.num_samples, positive_fraction=self.positive_fraction, iou=self.box[0].iou,
            low=self.background_iou,
        )  # fmt: skip

    def positives(self, samples: Samples, limit: int) -> Samples:
        """The first slots of a batch that can hold positives: a slice that is static, since positives come first."""
        slots = min(limit, int(self.num_samples * self.positive_fraction))
        return jax.tree.map(lambda x: x[:, :slots], samples)

    def touch(self, batch: Batch) -> None:
        """Call every network once, so that `init` makes the parameters without compiling the geometry."""
        pyramid = self.features(batch, train=False)
        if self.rpn is not None:
            self.rpn(pyramid, batch.image.shape[1:3])
        channels = pyramid[min(pyramid)][0].shape[-1]
        for part in (*self.box, *self.tasks.values()):
            regions = jnp.zeros((1, part.size, part.size, channels))
            regions = regions if self.trunk is None else self.trunk(regions, False)
            part(regions[None], jnp.ones((1, 1), bool), train=False)


def _given(batch: Batch) -> Proposals:
    if batch.proposals is None:
        raise UserError("this model finds no proposals of its own: give it some with the images")
    return batch.proposals


def _in_chunks(module: nn.Module, read: Callable, boxes: Array, valid: Array) -> Array:
    """`read(module, boxes, valid)` for a few RoIs [b r ...] at a time."""
    (b, r), chunk = valid.shape, min(_CHUNK, valid.shape[1])

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -r % chunk), *((0, 0) for _ in x.shape[2:])))
        return x.reshape(b, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    scan = nn.scan(lambda module, _, x: (_, read(module, *x)), variable_broadcast=("params", "batch_stats"))
    found = scan(module, None, (split(boxes), split(valid)))[1].swapaxes(0, 1)
    return found.reshape(b, -1, *found.shape[3:])[:, :r]


def _scale_gradient(x: Array, factor: float) -> Array:
    """`x`, with its gradient times `factor`: the stages of a cascade share the backbone by equal parts."""
    return x if factor == 1 else lax.stop_gradient(x) + factor * (x - lax.stop_gradient(x))


def _per_image(key: Array, batch: Batch) -> Array:
    return vmap(jax.random.fold_in, (None, 0))(key, batch.image_id)


def _next(keys: Array | None, number: int) -> Array | None:
    """Other keys for each image, of a use of its own: the samples were drawn with the ones that came."""
    return None if keys is None else vmap(jax.random.fold_in, (0, None))(keys, number)


def _as_detections(proposals: Proposals) -> Detections:
    """Proposals as detections of one class, object."""
    return Detections(proposals.boxes, proposals.scores, jnp.ones_like(proposals.valid, jnp.int32), proposals.valid)


def _over_images(terms: Losses, valid: Array) -> Losses:
    """Sum totals and weights over the images that are real."""
    return jax.tree.map(lambda x: jnp.sum(jnp.where(valid, x, 0.0)), terms)


def _watch(logits: Array, samples: Samples) -> Losses:
    """Figures that tell whether ONE image trains well, each as (total, weight)."""
    num_positive = jnp.sum(samples.positive, dtype=jnp.float32)
    right = jnp.argmax(logits, axis=-1) == samples.classes
    return {
        "positives": (num_positive, jnp.float32(1)),
        "accuracy": (jnp.sum(right & samples.valid, dtype=jnp.float32), jnp.sum(samples.valid, dtype=jnp.float32)),
        "positive_accuracy": (jnp.sum(right & samples.positive, dtype=jnp.float32), num_positive),
    }


def _watch_proposals(proposals: Proposals) -> Losses:
    return {"proposals": (jnp.sum(proposals.valid, dtype=jnp.float32), jnp.float32(1))}
