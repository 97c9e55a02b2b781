"""The box stage: classify each RoI and refine its box (Girshick, "Fast R-CNN", 2015)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int, Key, Num

from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops.losses import box_loss, softmax_cross_entropy
from mrcnn_jax.ops.nms import nms, top_k_valid
from mrcnn_jax.types import Detections, GroundTruth, Proposals, Samples


@struct.dataclass
class BoxOutput:
    """Class logits (column 0 is background) and, for each class or for all in common, the box deltas of RoIs."""

    logits: Float[Array, "*b r k1"]
    deltas: Float[Array, "*b r k_or_1 4"]


class BoxStage(nn.Module):
    """Head and predictor over pooled RoIs, with the rules for its loss and for choosing detections."""

    head: nn.Module
    predictor: nn.Module
    size: int = 7
    # From which IoU on a sample is positive.
    iou: float = 0.5
    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    beta: float = 0.0
    # Lambda of Fast R-CNN's equation 1; 0 trains no box regression.
    regression_weight: float = 1.0
    # Whether deltas move the boxes that are found, or these stay as they were proposed.
    regress: bool = True
    # An SVM's margin is a score as it is (R-CNN); logits become probabilities.
    score: Literal["softmax", "margin"] = "softmax"
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    # How many (RoI, class) pairs enter the last suppression. The references have no limit; a pair beyond the best 2,000
    # that would still have been among the 100 detections needs over 1,900 better pairs to be suppressed first.
    num_candidates: int = 2000
    min_size: float = 0.0

    def __call__(
        self,
        rois: Float[Array, "b r s s c"],
        valid: Bool[Array, "b r"],
        train: bool,
        key: Key[Array, " b"] | None = None,
    ) -> BoxOutput:
        """Logits and deltas of pooled RoIs; `valid` tells a synchronised BatchNorm which of them exist.

        Dropout, if the head has any, draws from `key`, one an image.
        """
        features = self.features(rois, valid, train, key)
        logits, deltas = self.predictor(features.reshape(-1, features.shape[-1]), rois.reshape(-1, *rois.shape[2:]))
        return BoxOutput(logits.reshape(*valid.shape, -1), deltas.reshape(*valid.shape, -1, 4))

    def features(
        self,
        rois: Float[Array, "b r s s c"],
        valid: Bool[Array, "b r"],
        train: bool,
        key: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b r f"]:
        """What the classes are told from; arguments as for a call."""
        b, r = valid.shape
        keys = None if key is None else jax.vmap(lambda key: jax.random.split(key, r))(key).reshape(-1)
        return self.head(rois.reshape(b * r, *rois.shape[2:]), train, valid.reshape(-1), keys).reshape(b, r, -1)

    def losses(self, out: BoxOutput, samples: Samples, gt: GroundTruth) -> dict[str, tuple[Array, Array]]:
        """Cross-entropy over all samples and box loss over the positives of ONE image, both divided by all samples."""
        classification, weight = softmax_cross_entropy(out.logits, samples.classes, samples.valid)
        if self.regression_weight == 0:
            return {"box_class": (classification, weight)}
        deltas = _of_class(out.deltas, samples.classes)
        targets = box_ops.encode(gt.boxes[samples.gt], samples.boxes, self.weights)
        box = self.regression_weight * box_loss(deltas, targets, samples.positive, self.beta)
        return {"box_class": (classification, weight), "box_regression": (box, weight)}

    def refine(
        self, out: BoxOutput, boxes: Float[Array, "r 4"], valid: Bool[Array, " r"], size: Num[Array, " 2"]
    ) -> tuple[Float[Array, "r 4"], Bool[Array, " r"]]:
        """The RoIs of the next stage of a cascade, without gradient: these moved by class-agnostic deltas and clipped.

        Not valid are those that the clipping leaves empty.
        """
        deltas = jax.lax.stop_gradient(out.deltas[:, 0])
        boxes = box_ops.clip(box_ops.decode(deltas, boxes, self.weights), size)
        return boxes, valid & jnp.all(boxes[:, 2:] > boxes[:, :2], axis=-1)

    def scores(self, logits: Float[Array, "*b r k1"]) -> Float[Array, "*b r k1"]:
        """Probabilities of the classes, or margins; the first is that of the background."""
        return jax.nn.softmax(logits, axis=-1) if self.score == "softmax" else logits

    def detect(
        self,
        scores: Float[Array, "r k1"],
        deltas: Float[Array, "r k_or_1 4"],
        rois: Proposals,
        size: Float[Array, " 2"],
    ) -> Detections:
        """Detections of ONE image: threshold, decode, clip, suppress a class at a time, keep the best."""
        num_classes = scores.shape[-1] - 1
        scores = scores[:, 1:]
        valid = rois.valid[:, None] & (scores > self.score_threshold)
        num_candidates = min(self.num_candidates, scores.size)
        best, valid = top_k_valid(scores.reshape(-1), valid.reshape(-1), num_candidates)
        roi, classes = best // num_classes, best % num_classes + 1
        boxes = rois.boxes[roi]
        if self.regress:
            boxes = box_ops.decode(_of_class(deltas[roi], classes), boxes, self.weights)
        boxes = box_ops.clip(boxes, size)
        sides = boxes[:, 2:] - boxes[:, :2]
        valid &= jnp.all(jnp.isfinite(boxes), axis=-1) & jnp.all(sides >= self.min_size, axis=-1)
        scores = scores.reshape(-1)[best]
        keep = nms(boxes, scores, valid, self.nms_threshold, classes)
        best, valid = top_k_valid(scores, keep, self.max_detections)
        return Detections(boxes[best], scores[best], classes[best], valid)


def _of_class(deltas: Float[Array, "r k 4"], classes: Int[Array, " r"]) -> Float[Array, "r 4"]:
    """Each row's deltas for its own class 1..k; class-agnostic deltas (k = 1) serve every class."""
    column = jnp.clip(classes - 1, 0, deltas.shape[1] - 1)
    return jnp.take_along_axis(deltas, column[:, None, None], axis=1)[:, 0]
