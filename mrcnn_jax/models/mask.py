"""The mask branch: an FCN that predicts an m x m mask a class, apart from the class (He et al., "Mask R-CNN", 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from mrcnn_jax.errors import UserError
from mrcnn_jax.models.pool import over_rois
from mrcnn_jax.ops.losses import mask_loss, mask_softmax_loss
from mrcnn_jax.ops.masks import crop_targets, select_class
from mrcnn_jax.types import Detections, GroundTruth, Samples


class MaskTask(nn.Module):
    """Mask head over pooled RoIs, with its loss on positives and its reading on detections."""

    head: nn.Module
    size: int = 14
    # How many of an image's positives it trains on; the references take them all (128).
    num_samples: int = 128
    # torchvision trains on soft targets, Detectron2 on bits.
    soft_targets: bool = False
    # Whether classes compete for a pixel, instead of a sigmoid each; the first of them is then the background.
    softmax: bool = False

    def __call__(
        self, rois: Float[Array, "b r s s c"], valid: Bool[Array, "b r"], train: bool
    ) -> Float[Array, "b r m m k"]:
        """Mask logits of pooled RoIs; `valid` tells a synchronised BatchNorm which of them exist."""
        return over_rois(self.head, rois, valid, train)

    def losses(
        self, logits: Float[Array, "s m m k"], samples: Samples, gt: GroundTruth
    ) -> dict[str, tuple[Array, Array]]:
        """Mean binary cross-entropy of each positive's own class, over the positives of ONE image that have a mask.

        Raises `UserError` where the ground truth comes without masks.
        """
        if gt.has_mask is None:
            raise UserError("the mask branch has no masks to train on: set config.data.mask_size above 0")
        targets = crop_targets(gt.masks, gt.boxes, samples.gt, samples.boxes, logits.shape[1], soft=self.soft_targets)
        where = samples.positive & gt.has_mask[samples.gt]
        if self.softmax:
            return {"mask": mask_softmax_loss(logits, targets, self._column(samples.classes, logits), where)}
        return {"mask": mask_loss(select_class(logits, samples.classes), targets, where)}

    def detect(self, logits: Float[Array, "d m m k"], detections: Detections) -> Detections:
        """The detections of ONE image with the probabilities of their class's mask."""
        if self.softmax:
            probabilities = select_class(jax.nn.softmax(logits, axis=-1)[..., 1:], detections.classes)
        else:
            probabilities = jax.nn.sigmoid(select_class(logits, detections.classes))
        return detections.replace(masks=jnp.where(detections.valid[:, None, None], probabilities, 0.0))

    def _column(self, classes: Int[Array, " s"], logits: Float[Array, "s m m k1"]) -> Int[Array, " s"]:
        """The channel of each class; class-agnostic masks have one, behind the background's."""
        return jnp.minimum(classes, logits.shape[-1] - 1)
