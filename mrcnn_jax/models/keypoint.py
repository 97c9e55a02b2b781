"""The keypoint branch: a heatmap a keypoint, each for one point (He et al., "Mask R-CNN", 2017, section 5)."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from mrcnn_jax.errors import UserError
from mrcnn_jax.models.pool import over_rois
from mrcnn_jax.ops.keypoints import Score, decode, heatmap_targets
from mrcnn_jax.ops.losses import keypoint_loss
from mrcnn_jax.types import Detections, GroundTruth, Samples


class KeypointTask(nn.Module):
    """Keypoint head over pooled RoIs, with its loss on positives and its reading on detections."""

    head: nn.Module
    size: int = 14
    # How many of an image's positives it trains on; the references take them all (128).
    num_samples: int = 128
    # Detectron2 gives probabilities, torchvision logits.
    score: Score = "probability"

    def __call__(
        self, rois: Float[Array, "b r s s c"], valid: Bool[Array, "b r"], train: bool
    ) -> Float[Array, "b r m m j"]:
        """Heatmap logits of pooled RoIs; `valid` tells a synchronised BatchNorm which of them exist."""
        return over_rois(self.head, rois, valid, train)

    def losses(
        self, logits: Float[Array, "s m m j"], samples: Samples, gt: GroundTruth
    ) -> dict[str, tuple[Array, Array]]:
        """Mean cross-entropy of the keypoints that are labelled and lie in their RoI, over the positives of ONE image.

        Detectron2 first leaves out the positives without such a keypoint, which have no part in the sums anyway.
        Raises `UserError` where the ground truth comes without keypoints, or with another number of them.
        """
        if gt.keypoints is None:
            raise UserError("the keypoint branch has no keypoints to train on: set config.data.keypoints=True")
        theirs, ours = gt.keypoints.shape[-2], logits.shape[-1]
        if theirs != ours:
            raise UserError(
                f"the data set has {theirs} keypoints and the model predicts {ours}: "
                f"set config.model.keypoint.num_keypoints={theirs}"
            )
        cells, labelled = heatmap_targets(gt.keypoints[samples.gt], samples.boxes, logits.shape[1])
        where = samples.positive[:, None] & labelled
        return {"keypoint": keypoint_loss(logits.transpose(0, 3, 1, 2), cells, where)}

    def detect(self, logits: Float[Array, "d m m j"], detections: Detections) -> Detections:
        """The detections of ONE image with their keypoints."""
        # A row that does not exist may hold a box of any size, which would be searched.
        boxes = jnp.where(detections.valid[:, None], detections.boxes, 0.0)
        keypoints = decode(logits.transpose(0, 3, 1, 2), boxes, self.score)
        return detections.replace(keypoints=jnp.where(detections.valid[:, None, None], keypoints, 0.0))
