"""The classes that published weights were trained on: their files hold numbers alone."""

from collections.abc import Sequence

from mrcnn_jax.data.coco_categories import flip_permutation
from mrcnn_jax.data.dataset import Category

# COCO's ids go to 90, with gaps.
_COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep",
    "cow", "elephant", "bear", "zebra", "giraffe", "", "backpack", "umbrella", "", "",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat",
    "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "", "wine glass", "cup", "fork", "knife",
    "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza",
    "donut", "cake", "chair", "couch", "potted plant", "bed", "", "dining table", "", "",
    "toilet", "", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
    "toothbrush",
)  # fmt: skip
_VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_CITYSCAPES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_JOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
_LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip


def published_classes(num_classes: int, num_keypoints: int = 0) -> tuple[Category, ...]:
    """The classes that a published model with this many has; numbered names where there is none.

    80 are COCO's in the order of their ids, 90 are COCO's ids themselves as torchvision has them (ten of which are no
    class, and called "unused"), 20 are Pascal VOC's, 8 are Cityscapes', and one with 17 keypoints is COCO's person.
    """
    if num_classes == 1 and num_keypoints == len(_JOINTS):
        return (Category(1, "person", _JOINTS, flip_permutation(_JOINTS), _LIMBS),)
    if num_classes == 80:
        return tuple(Category(number, name) for number, name in enumerate(_COCO, start=1) if name)
    if num_classes == len(_COCO):
        return numbered([name or f"unused {number}" for number, name in enumerate(_COCO, start=1)])
    if num_classes == len(_VOC):
        return numbered(_VOC)
    if num_classes == len(_CITYSCAPES):
        return numbered(_CITYSCAPES)
    return numbered([f"class {number}" for number in range(1, num_classes + 1)])


def numbered(names: Sequence[str]) -> tuple[Category, ...]:
    """Classes of these names, with ids from 1 on."""
    return tuple(Category(number, name) for number, name in enumerate(names, start=1))
