"""Plain networks from Caffe and torchvision: which array goes where, in which order of axes, and what is refused."""

import re

import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from mrcnn_jax.checkpoints import initial
from mrcnn_jax.checkpoints.importing import convert
from mrcnn_jax.checkpoints.names import flatten
from mrcnn_jax.checkpoints.weight_files import WeightFile
from mrcnn_jax.errors import UserError
from mrcnn_jax.models import plain, zoo
from mrcnn_jax.models.build import build
from mrcnn_jax.nn.plain import LAYERS, ConvLayer, PoolLayer

FCS = (6, 5)
# (place, output channels) of the convolutions of torchvision's vgg16, here a hundredth as wide.
VGG16 = tuple(zip(
    (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (2, 2, 3, 3, 4, 4, 4, 6, 6, 6, 6, 6, 6), strict=True
))  # fmt: skip


def small_fcs(config: ConfigDict) -> ConfigDict:
    config.box.fc_dims = FCS
    return config


def caffe(network: str, cells: int, separator: str = ".") -> dict[str, np.ndarray]:
    """Random weights of a network as converted from Caffe, with two small FCs and the classifier."""
    rng = np.random.default_rng(0)
    arrays, channels = {}, 3
    for layer in LAYERS[network]:
        if isinstance(layer, ConvLayer):
            shape = (layer.features, channels // layer.groups, layer.kernel, layer.kernel)
            arrays[f"{layer.name}{separator}weight"] = rng.random(shape, np.float32)
            arrays[f"{layer.name}{separator}bias"] = rng.random(layer.features, np.float32)
            channels = layer.features
    sizes = (cells**2 * channels, *FCS, 10)
    for name, inputs, outputs in zip(("fc6", "fc7", "fc8"), sizes, sizes[1:], strict=False):
        arrays[f"{name}{separator}weight"] = rng.random((outputs, inputs), np.float32)
        arrays[f"{name}{separator}bias"] = rng.random(outputs, np.float32)
    return arrays


def assert_fc1_reads_channels_first(kernel: np.ndarray, theirs: np.ndarray, cells: int) -> None:
    """Theirs flattens channel, row, column, and ours row, column, channel: both see the same RoI."""
    roi = np.random.default_rng(1).random((cells, cells, theirs.shape[1] // cells**2), np.float32)
    expected = theirs @ roi.transpose(2, 0, 1).reshape(-1)
    np.testing.assert_allclose(roi.reshape(-1) @ kernel, expected, rtol=1e-5)


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize(
    ("base", "part", "cells"),
    [
        (lambda: plain.fast_rcnn("alexnet"), "backbone", 6),
        (lambda: plain.rcnn("alexnet"), "trunk", 6),
        (lambda: plain.fast_rcnn("zf"), "backbone", 6),
        (lambda: plain.fast_rcnn("vgg_m"), "backbone", 6),
        (lambda: plain.faster_rcnn("small"), "backbone", 7),
        # Of its 64 x 64 pixels 4 x 4 cells are left.
        (lambda: plain.rcnn("small"), "trunk", 2),
    ],
)
def test_caffes_networks(base, part, cells, separator):
    config = small_fcs(base())
    kind = (config.trunk if part == "trunk" else config.backbone).kind
    arrays = caffe(kind, cells, separator)
    found = convert(WeightFile(arrays), "net.npz", backbone_of=config)
    assert found.missing == ()
    assert {path.rpartition("/")[0] for path in found.leaves} == {
        f"params/{part}/{layer.name}" for layer in LAYERS[kind] if isinstance(layer, ConvLayer)
    } | {"params/box_0/head/fc1", "params/box_0/head/fc2"}
    last = next(layer.name for layer in reversed(LAYERS[kind]) if isinstance(layer, ConvLayer))
    theirs = arrays[f"{last}{separator}weight"]
    np.testing.assert_array_equal(found.leaves[f"params/{part}/{last}/kernel"], theirs.transpose(2, 3, 1, 0))
    fc6, fc7 = (arrays[f"{name}{separator}weight"] for name in ("fc6", "fc7"))
    assert_fc1_reads_channels_first(found.leaves["params/box_0/head/fc1/kernel"], fc6, cells)
    np.testing.assert_array_equal(found.leaves["params/box_0/head/fc2/kernel"], fc7.T)
    pixels = found.config.preprocess
    assert (pixels.bgr, pixels.mean, pixels.std) == (True, (122.7717, 115.9465, 102.9801), (1.0, 1.0, 1.0))
    told = "\n".join(found.report)
    assert "as Caffe names it" in told
    assert f"dropped, no part of a detector: 2 (fc8{separator}weight, fc8{separator}bias)" in told


@pytest.fixture
def narrow_vgg16(monkeypatch):
    """VGG-16 with few channels, and its state dict under torchvision's names."""
    layers, channels = [], iter(VGG16)
    for layer in LAYERS["vgg16"]:
        layers.append(layer if isinstance(layer, PoolLayer) else layer._replace(features=next(channels)[1]))
    monkeypatch.setitem(LAYERS, "vgg16", tuple(layers))
    arrays = caffe("vgg16", 7)
    places = [f"features.{place}" for place, _ in VGG16] + ["classifier.0", "classifier.3", "classifier.6"]
    return {
        f"{places[number // 2]}.{key.partition('.')[2]}": array for number, (key, array) in enumerate(arrays.items())
    }


@pytest.mark.parametrize("base", [plain.rcnn, plain.fast_rcnn, plain.faster_rcnn])
def test_torchvisions_vgg16(narrow_vgg16, base):
    config = small_fcs(base("vgg16"))
    part = "trunk" if base is plain.rcnn else "backbone"
    found = convert(WeightFile(narrow_vgg16), "vgg16.pth", backbone_of=config)
    names = [layer.name for layer in LAYERS["vgg16"] if isinstance(layer, ConvLayer)]
    for name, (place, _) in zip(names, VGG16, strict=True):
        theirs = narrow_vgg16[f"features.{place}.weight"]
        np.testing.assert_array_equal(found.leaves[f"params/{part}/{name}/kernel"], theirs.transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(
            found.leaves[f"params/{part}/{name}/bias"], narrow_vgg16[f"features.{place}.bias"]
        )
    kernel = found.leaves["params/box_0/head/fc1/kernel"]
    assert_fc1_reads_channels_first(kernel, narrow_vgg16["classifier.0.weight"], 7)
    np.testing.assert_array_equal(found.leaves["params/box_0/head/fc2/bias"], narrow_vgg16["classifier.3.bias"])
    assert len(found.leaves) == 2 * (13 + 2)
    pixels = found.config.preprocess
    assert (pixels.bgr, pixels.mean, pixels.std) == (False, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    told = "\n".join(found.report)
    assert "VGG-16, 20 classes, as torchvision names it" in told
    assert "renamed: 30 (features.0.weight -> conv1_1.weight" in told
    assert "dropped, no part of a detector: 2 (classifier.6.weight, classifier.6.bias)" in told


def torchvision_names(*places: int) -> dict[str, np.ndarray]:
    return {f"features.{place}.weight": np.ones((2, 2, 3, 3), np.float32) for place in places}


RESNET = {"conv1.weight": np.ones((64, 3, 7, 7), np.float32), "layer1.0.conv1.weight": np.ones((64, 64, 1, 1))}


@pytest.mark.parametrize(
    ("arrays", "base", "words"),
    [
        (torchvision_names(0, 3) | {"features.1.running_mean": np.ones(2)}, plain.fast_rcnn, "a VGG with BatchNorm"),
        (torchvision_names(0, 3, 6, 8, 10), plain.fast_rcnn, "is torchvision's AlexNet, which is another network"),
        (torchvision_names(0, 3, 6, 8, 11, 13, 16, 18), plain.fast_rcnn, "not its vgg16"),
        (torchvision_names(0, 2), zoo.mask_rcnn, "is a plain network, and the model begins with ResNet-50"),
        (
            torchvision_names(0, 2),
            plain.fast_rcnn,
            "is not VGG-16, which the model begins with: it has no conv1_1.bias",
        ),
        (caffe("alexnet", 6), plain.fast_rcnn, "is not VGG-16, which the model begins with: conv1.bias is 96 there"),
        (caffe("zf", 6), lambda: plain.fast_rcnn("vgg_m"), "is not VGG_CNN_M_1024"),
        (RESNET, plain.rcnn, "is a ResNet, and the model begins with AlexNet"),
        (RESNET, plain.fast_rcnn, "is a ResNet, and the model begins with VGG-16"),
    ],
)
def test_another_network_than_the_models(arrays, base, words):
    with pytest.raises(UserError, match=re.escape(words)) as told:
        convert(WeightFile(arrays), "net.pth", backbone_of=base(), allow_partial=True)
    assert str(told.value).startswith("net.pth")
    assert "\n" not in str(told.value)


def test_a_network_alone_does_not_tell_what_it_begins():
    with pytest.raises(UserError, match="--arch=fast_rcnn_vgg16"):
        convert(WeightFile(caffe("small", 7)), "net.npz")


def test_training_begins_with_what_fits(tmp_path, monkeypatch):
    """FCs of other sizes than the experiment's are left out, and told; its heads are new."""
    path = tmp_path / "small.npz"
    arrays = caffe("small", 7, "/")
    np.savez(path, **arrays)
    config = ConfigDict({"seed": 0, "model": small_fcs(plain.faster_rcnn("small")), "train": {"init": str(path)}})
    config.model.box.fc_dims = (FCS[0], 4)
    source = initial.read_source(config)
    config, _ = initial.adopt(config, source)
    model = build(config.model)
    random = tiny.variables(model)
    monkeypatch.setattr(initial, "init", lambda model, key: random)
    variables, report = initial.initial_variables(model, config, source)
    found, random = flatten(variables), flatten(random)
    np.testing.assert_array_equal(
        found["params/backbone/conv3_1/kernel"], arrays["conv3_1/weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(found["params/box_0/head/fc1/bias"], arrays["fc6/bias"])
    for kept in ("params/box_0/head/fc2/kernel", "params/rpn/head/conv1/kernel"):
        np.testing.assert_array_equal(found[kept], random[kept])
    told = "\n".join(report)
    assert (
        "dropped, another shape: 2 (fc7.bias (5, where the model has 4), fc7.weight (5 x 6, where the model has 4 x 6))"
        in told
    )
    assert "left at initialisation: 12 (" in told
