"""Plain networks trained on ImageNet: Caffe's names for our modules, and torchvision's VGG-16 under those names.

What people convert from Caffe has its layers' names, "conv1_1.weight" or "fc6/bias", and its layouts, which are
PyTorch's: convolutions OIHW, matrices (out, in). fc6 and fc7 are the two FCs of the box head.
"""

import re
from collections.abc import Iterable
from typing import Literal

from ml_collections import ConfigDict

from mrcnn_jax.errors import UserError
from mrcnn_jax.nn.plain import LAYERS, ConvLayer

# What a plain network, which was trained on whole images, has of a detector.
PARTS = ("backbone/", "trunk/", "box_0/head/")

# A ResNet has a layer conv1 too.
_CAFFE = re.compile(r"conv(?:[2-9]|\d_\d)[./](?:weight|bias)")
_CAFFE_CLASSIFIER = re.compile(r"(fc8\w*|prob)[./].*")
_TORCHVISION = re.compile(r"features\.(\d{1,3})\.(weight|bias)")
_TORCHVISION_CLASSIFIER = re.compile(r"classifier\.(\d)\.(weight|bias)")
# The places of the convolutions in the `features` of torchvision's networks; between them are ReLUs and poolings.
_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_ALEXNET = (0, 3, 6, 8, 10)
# Those of the two FCs in its `classifier`; the third tells ImageNet's classes apart.
_FCS = {"0": "fc6", "3": "fc7"}


def origin(keys: Iterable[str], file: str) -> Literal["torchvision", "Caffe"] | None:
    """Whose names of a plain network these are; None where they are of no such network.

    Raises `UserError`, naming `file`, where it is one of torchvision's that is not known here.
    """
    keys = list(keys)
    places = {int(match[1]) for key in keys if (match := _TORCHVISION.fullmatch(key))}
    if not places:
        return "Caffe" if any(_CAFFE.fullmatch(key) for key in keys) else None
    if any(key.endswith("running_mean") for key in keys):
        raise UserError(f"{file} is a VGG with BatchNorm, which no model here has: give torchvision's vgg16 without")
    if places == set(_ALEXNET):
        raise UserError(
            f"{file} is torchvision's AlexNet, which is another network than Caffe's (64 channels behind conv1, no "
            "groups, no normalisation): give the weights of CaffeNet, as conv1.weight to fc7.weight"
        )
    if not places <= set(_VGG16):
        raise UserError(
            f"{file} is a network of torchvision, but not its vgg16, which is the only plain one known here"
        )
    return "torchvision"


def current_name(key: str) -> str | None:
    """The key under Caffe's names, "conv1_1.weight"; None for the classifier of ImageNet."""
    if match := _TORCHVISION.fullmatch(key):
        layers = [layer.name for layer in LAYERS["vgg16"] if isinstance(layer, ConvLayer)]
        return f"{layers[_VGG16.index(int(match[1]))]}.{match[2]}"
    if match := _TORCHVISION_CLASSIFIER.fullmatch(key):
        return f"{_FCS[match[1]]}.{match[2]}" if match[1] in _FCS else None
    return None if _CAFFE_CLASSIFIER.fullmatch(key) else key.replace("/", ".")


def module_name(modules: list[str], config: ConfigDict) -> str:
    """Caffe's layer for the path of one of our modules: ["backbone", "conv1_1"], ["box_0", "head", "fc1"]."""
    del config
    match modules:
        case [("backbone" | "trunk"), layer]:
            return layer
        case ["box_0", "head", ("fc1" | "fc2") as layer]:
            return {"fc1": "fc6", "fc2": "fc7"}[layer]
    raise UserError(f"a plain network of Caffe has no {'/'.join(modules)}")


def follow_pixels(config: ConfigDict, whose: Literal["torchvision", "Caffe"]) -> None:
    """Gives a config the pixels that these networks were trained with, mean and deviation in RGB order."""
    if whose == "torchvision":
        config.preprocess.update({"bgr": False, "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)})
    else:
        config.preprocess.update({"bgr": True, "mean": (122.7717, 115.9465, 102.9801), "std": (1.0, 1.0, 1.0)})


def is_convolution(key: str) -> bool:
    """Whether a key under Caffe's names is of a convolution: a network has all of its own, or is another network."""
    return key.startswith("conv")
