"""The containers that flow through a model, one per role, as frozen pytrees.

Shape vocabulary, used in every annotation of the package:

    b  images in a batch         a  anchors, all levels together    d  detections
    h w c  height, width,        p  proposals                       k  foreground classes
           channels of a map     s  samples (RoIs a head trains on) m  side of a mask
                                 g  ground-truth slots              j  keypoints

`*b` stands for an optional batch axis: the same class is used for a batch and, inside `vmap`, for one image.

Conventions. Boxes are `xyxy` in continuous float pixels of the padded image: pixel `i` covers `[i, i + 1)`, and width
is `x2 - x1`. Class 0 is background and foreground classes are 1..k. Whether a row exists is told by `valid` alone,
never by its coordinates: a padding row may hold any value, NaN included, and nothing changes.
"""

import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Float32, Int, UInt8

# A container holds NumPy arrays on the host and JAX arrays on the device.
Leaf = Array | np.ndarray

# Feature maps [b h w c] by level (stride 2**level), each with its extent [b 2]: the rows and columns inside which the
# map is that of the image; None where that is all of it.
Pyramid = dict[int, tuple[Array, Array | None]]


@struct.dataclass
class GroundTruth:
    """The annotated objects of an image, padded to a fixed number of slots."""

    boxes: Float[Leaf, "*b g 4"]
    classes: Int[Leaf, "*b g"]
    valid: Bool[Leaf, "*b g"]
    # A crowd region is never a positive; samples that lie in it are left out of the losses.
    crowd: Bool[Leaf, "*b g"]
    # Box-relative m x m bitmaps, eight pixels a byte along the last axis (`numpy.packbits`), so m8 = m / 8.
    masks: UInt8[Leaf, "*b g m m8"] | None = None
    # False where only a box was annotated: such an object takes no part in the mask loss.
    has_mask: Bool[Leaf, "*b g"] | None = None
    # x, y in pixels, and COCO's visibility: 0 not labelled, 1 hidden, 2 visible.
    keypoints: Float[Leaf, "*b g j 3"] | None = None


@struct.dataclass
class Proposals:
    """Class-agnostic candidate boxes, best first."""

    boxes: Float[Leaf, "*b p 4"]
    scores: Float[Leaf, "*b p"]
    valid: Bool[Leaf, "*b p"]


@struct.dataclass
class Samples:
    """The RoIs that the second stage trains on; positives come first."""

    boxes: Float[Leaf, "*b s 4"]
    # Index into the ground truth; meaningful where `positive`.
    gt: Int[Leaf, "*b s"]
    # 0 (background) unless positive.
    classes: Int[Leaf, "*b s"]
    positive: Bool[Leaf, "*b s"]
    valid: Bool[Leaf, "*b s"]


@struct.dataclass
class Detections:
    """What a model found, best score first."""

    boxes: Float[Leaf, "*b d 4"]
    scores: Float[Leaf, "*b d"]
    classes: Int[Leaf, "*b d"]
    valid: Bool[Leaf, "*b d"]
    # Probabilities inside the box, of the detected class.
    masks: Float[Leaf, "*b d m m"] | None = None
    # x, y in pixels and a score.
    keypoints: Float[Leaf, "*b d j 3"] | None = None


@struct.dataclass
class Batch:
    """Images padded at the bottom and right to one shape, and what is known about each."""

    # Values 0..255; float32 where a resize was not rounded.
    image: UInt8[Leaf, "b h w 3"] | Float32[Leaf, "b h w 3"]
    # Height and width of the content: pixels beyond it are padding.
    size: Int[Leaf, "b 2"]
    # Height and width of the file, before any resize.
    original_size: Int[Leaf, "b 2"]
    # The data set's id; with the seed and the step it makes the image's random key.
    image_id: Int[Leaf, " b"]
    # False for an image that only fills up the batch.
    valid: Bool[Leaf, " b"]
    gt: GroundTruth | None = None
    # Objects that did not fit into the g slots.
    num_dropped: Int[Leaf, " b"] | None = None
    # Fast R-CNN and R-CNN: regions that come with the data.
    proposals: Proposals | None = None


def empty_batch(batch_size: int, shape: tuple[int, int], dtype: str = "uint8") -> Batch:
    """A NumPy batch of black images, none of which is valid."""
    return Batch(
        image=np.zeros((batch_size, *shape, 3), dtype),
        size=np.full((batch_size, 2), 32, np.int32),
        original_size=np.full((batch_size, 2), 32, np.int32),
        image_id=np.zeros(batch_size, np.int32),
        valid=np.zeros(batch_size, bool),
    )
