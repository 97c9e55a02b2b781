"""The weights that training starts from, and what is said about them."""

import re

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from mrcnn_jax.checkpoints import initial
from mrcnn_jax.checkpoints.importing import Weights
from mrcnn_jax.checkpoints.names import flatten
from mrcnn_jax.errors import UserError
from mrcnn_jax.models import plain, zoo
from mrcnn_jax.models.build import build


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Random variables, and those and the report of a run that starts from an .npz of these arrays or from none."""

    def start(arrays: dict[str, np.ndarray] | None = None, norm: str = "frozen_bn"):
        config = ConfigDict({"seed": 0, "model": tiny.model_config(), "train": {"init": ""}})
        config.model.backbone.norm = norm
        if arrays is not None:
            np.savez(tmp_path / "resnet.npz", **arrays)
            config.train.init = str(tmp_path / "resnet.npz")
        source = initial.read_source(config)
        config, _ = initial.adopt(config, source)
        model = build(config.model)
        random = tiny.variables(model)
        # Not to compile `init` for every test.
        monkeypatch.setattr(initial, "init", lambda model, key: random)
        return random, *initial.initial_variables(model, config, source)

    return start


def conv(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_random_weights_with_frozen_norms_are_warned_of(start):
    random, variables, (line,) = start()
    jax.tree.map(np.testing.assert_array_equal, variables, random)
    assert "config.train.init" in line
    assert "norm to gn or bn" in line
    assert start(norm="gn")[2] == []


def test_a_folded_resnet(start):
    arrays = {
        "conv1.weight": conv((8, 3, 7, 7), 1), "conv1.bias": conv((8,), 2),
        "layer1.0.conv2.weight": conv((8, 8, 3, 3), 3), "layer1.0.conv2.bias": conv((8,), 4),
        "layer2.0.downsample.0.weight": conv((16, 8, 1, 1), 5), "layer2.0.downsample.0.bias": conv((16,), 6),
        "layer3.0.conv1.weight": conv((7, 7, 3, 3), 7), "fc.weight": conv((10, 64), 8),
    }  # fmt: skip
    random, variables, lines = start(arrays)
    params, buffers = variables["params"]["backbone"], variables["batch_stats"]["backbone"]
    for name, kernel, norm in (
        ("conv1", params["stem"]["conv1"], buffers["stem"]["norm"]),
        ("layer1.0.conv2", params["res2_0"]["conv2"], buffers["res2_0"]["norm2"]),
        ("layer2.0.downsample.0", params["res3_0"]["shortcut"], buffers["res3_0"]["shortcut_norm"]),
    ):
        np.testing.assert_array_equal(
            kernel["kernel"], np.moveaxis(arrays[f"{name}.weight"], (2, 3, 1, 0), (0, 1, 2, 3))
        )
        np.testing.assert_array_equal(norm["bias"], arrays[f"{name}.bias"])
    report = "\n".join(lines)
    assert "a backbone for Mask R-CNN, ResNet-10-FPN" in report
    assert "dropped, another shape: 1 (backbone.body.layer3.0.conv1.weight (7 x 7 x 3 x 3, where" in report
    assert "dropped, no part of a detector: 1 (fc.weight)" in report
    kept = random["params"]["backbone"]["res4_0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(params["res4_0"]["conv1"]["kernel"], kept)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"conv1.weight": conv((8, 3, 3, 3), 1)}, "holds nothing that fits this model"),
        ({"student.conv1.weight": conv((8, 3, 7, 7), 1)}, "'student.conv1.weight' and the other names in it are of no"),
        ({"conv1.weight": conv((8, 3), 1)}, "holds nothing that fits this model"),
        ({"conv1.weight": np.array([{}])}, "fetch it again"),
    ],
)
def test_a_file_that_cannot_be_used(start, arrays, words):
    with pytest.raises(UserError, match=re.escape(words)):
        start(arrays)


def test_a_file_cut_short(tmp_path):
    whole = tmp_path / "whole.npz"
    np.savez(whole, **{"conv1.weight": conv((8, 3, 7, 7), 1)})
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:2000])
    config = ConfigDict({"seed": 0, "model": tiny.model_config(), "train": {"init": str(tmp_path / "cut.npz")}})
    with pytest.raises(UserError, match="damaged"):
        initial.read_source(config)


def experiment(model: ConfigDict) -> ConfigDict:
    return ConfigDict({"seed": 0, "model": model, "train": {"init": ""}})


def weights_of(model: ConfigDict) -> Weights:
    return Weights("runs/a", model, None, flatten(tiny.variables(build(model))))


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (lambda: plain.fast_rcnn("small"), tiny.model_config, "begins with ResNet-10, and config.model with a small n"),
        (tiny.model_config, lambda: plain.fast_rcnn("small"), "begins with a small network, and config.model with Res"),
        (lambda: plain.fast_rcnn("vgg16"), lambda: plain.fast_rcnn("small"), "and config.model with VGG-16"),
        (lambda: plain.fast_rcnn("small"), lambda: plain.rcnn("small"), "begins with a small network for regions"),
        (lambda: plain.rcnn("small"), lambda: plain.fast_rcnn("small"), "with a small network for regions (R-CNN)"),
        (lambda: plain.rcnn("small"), tiny.model_config, "begins with ResNet-10, and config.model with a small netw"),
        (tiny.model_config, lambda: plain.rcnn("small"), "begins with a small network for regions (R-CNN), and config"),
    ],
)
def test_weights_of_another_kind_of_network(ours, theirs, words):
    with pytest.raises(UserError, match=re.escape(words)) as told:
        initial.adopt(experiment(ours()), weights_of(theirs()))
    assert str(told.value).startswith("runs/a begins with")


def without_rpn() -> ConfigDict:
    config = tiny.model_config()
    config.rpn = None
    return config


@pytest.mark.parametrize(
    ("ours", "theirs", "taken"),
    [
        (tiny.model_config, lambda: zoo.rpn(tiny.model_config()), {"backbone", "fpn", "rpn"}),
        (lambda: zoo.rpn(tiny.model_config()), tiny.model_config, {"backbone", "fpn", "rpn"}),
        # An experiment that is an RPN alone stays one.
        (lambda: zoo.rpn(tiny.model_config()), without_rpn, {"backbone", "fpn"}),
        (lambda: plain.rcnn("small"), lambda: plain.rcnn("small"), {"trunk", "box_0"}),
        (lambda: plain.faster_rcnn("small"), lambda: zoo.rpn(plain.faster_rcnn("small")), {"backbone", "rpn"}),
    ],
)
def test_parts_that_both_have_are_taken(ours, theirs, taken, monkeypatch):
    source = weights_of(theirs())
    config, _ = initial.adopt(experiment(ours()), source)
    model = build(config.model)
    random = tiny.variables(model, seed=1)
    monkeypatch.setattr(initial, "init", lambda model, key: random)
    found, random = (flatten(x) for x in (initial.initial_variables(model, config, source)[0], random))
    for path, leaf in found.items():
        expected = source.leaves if path.split("/")[1] in taken else random
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    assert taken <= {path.split("/")[1] for path in found}
