"""`mrcnn import` and `mrcnn export`: weights go in, detect the same, and go out again."""

import json

import foreign_files
import jax
import numpy as np
import pytest
import tiny

import mrcnn_jax
from mrcnn_jax.checkpoints import exporting
from mrcnn_jax.checkpoints.importing import import_weights
from mrcnn_jax.cli import main
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.models import architectures, zoo
from mrcnn_jax.models.build import build

SIZES = ["--model.preprocess.short_side=64", "--model.preprocess.max_size=96"]


@pytest.fixture(scope="module")
def weights():
    """Config and variables of a tiny torchvision-like model."""
    config = tiny.model_config()
    config.backbone.norm = "frozen_bn"
    config = zoo.torchvision_v1(config)
    return config, tiny.variables(build(config))


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    """Its state dict as somebody saved it, with the optimiser."""
    config, variables = weights
    arrays = exporting.state_dict(variables, config, "torchvision")
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    return foreign_files.write_torch_zip(path, arrays, lambda model: {"model": model, "epoch": 3})


@pytest.fixture(scope="module")
def checkpoint(file, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "checkpoint"
    assert main(["import", str(file), f"--out={out}", *SIZES]) == 0
    return out


def test_import_tells_what_it_did(file, tmp_path, capsys):
    assert main(["import", str(file), f"--out={tmp_path / 'out'}", *SIZES]) == 0
    told = capsys.readouterr().out
    assert "Mask R-CNN, ResNet-10-FPN, frozen_bn, 3 classes, as torchvision names it" in told
    assert "dropped, no part of a detector: 1 (epoch)" in told
    assert "short side 64 up to 96" in told
    assert "eps of norms 0" in told


def test_a_checkpoint_holds_what_the_file_held(file, checkpoint, weights):
    config, variables = weights
    for model in (mrcnn_jax.load(checkpoint), mrcnn_jax.load(file)):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(model.params), variables)
        for key in ("aligned", "sampling_ratio", "level_eps"):
            assert model.config.roi[key] == config.roi[key]
        assert model.classes == ("class 1", "class 2", "class 3")
    assert mrcnn_jax.load(checkpoint).config.preprocess.short_side == 64
    assert mrcnn_jax.load(file, {"backbone.norm_eps": 1e-5}).config.backbone.norm_eps == 1e-5


def test_classes_are_named(file, tmp_path, capsys):
    """By a list, or by the annotations that the weights were trained on, in the order of their ids."""
    coco = tmp_path / "train.json"
    categories = [{"id": 7, "name": "pear"}, {"id": 2, "name": "apple"}, {"id": 9, "name": "plum"}]
    coco.write_text(
        json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": categories})
    )
    for i, (given, names) in enumerate((("a, b c,d", ("a", "b c", "d")), (str(coco), ("apple", "pear", "plum")))):
        assert main(["import", str(file), f"--out={tmp_path / str(i)}", f"--classes={given}"]) == 0
        assert f"classes, as given: 3 ({', '.join(names)})" in capsys.readouterr().out
        assert mrcnn_jax.load(tmp_path / str(i)).classes == names


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a,b", "has 3 classes, and --classes names 2 (a, b)"),
        ("a,b,a", "give every class one name of its own"),
        ("a,,b", "give every class one name of its own"),
        ("absent.json", "absent.json: cannot read the annotations"),
    ],
)
def test_classes_that_cannot_be_meant(file, tmp_path, capsys, given, words):
    assert main(["import", str(file), f"--out={tmp_path / 'out'}", f"--classes={given}"]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_predict_takes_both(file, checkpoint, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    overrides = {"preprocess.short_side": 64, "preprocess.max_size": 96}
    (expected,) = mrcnn_jax.load(checkpoint).predict([image])
    (found,) = mrcnn_jax.load(file, overrides).predict([image])
    assert len(expected.boxes) > 0
    for field in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


@pytest.mark.parametrize("kind", ["torchvision", "detectron2", "safetensors"])
def test_export_gives_the_same_weights_back(checkpoint, weights, tmp_path, kind, capsys):
    out = tmp_path / "model.out"
    assert main(["export", f"--checkpoint={checkpoint}", f"--format={kind}", f"--out={out}"]) == 0
    told = capsys.readouterr().out
    assert f"{kind}: {out}" in told
    assert ("detections will differ" in told) == (kind == "detectron2")
    found = import_weights(out)
    if kind != "detectron2":
        jax.tree.map(np.testing.assert_array_equal, found.variables(), weights[1])
    if kind == "safetensors":
        assert found.config.to_dict() == mrcnn_jax.load(checkpoint).config.to_dict()
        assert found.categories == tuple(Category(i, f"class {i}") for i in (1, 2, 3))


def test_export_to_stablehlo(checkpoint, tmp_path, capsys):
    out = tmp_path / "model.stablehlo"
    arguments = ["export", f"--checkpoint={checkpoint}", "--format=stablehlo", f"--out={out}"]
    assert main(arguments) == 2
    assert "--image-size=480x640" in capsys.readouterr().err
    assert main([*arguments, "--image-size=70x90", "--batch-size=1"]) == 0
    assert out.stat().st_size > 10_000


def test_a_backbone_for_keypoints_names_the_person(weights, tmp_path, monkeypatch, capsys):
    def named():
        config = tiny.model_config()
        config.num_classes, config.mask, config.keypoint = 1, None, zoo.keypoint_rcnn().keypoint
        return config

    monkeypatch.setitem(architectures.NAMED, "tiny_keypoint_rcnn", named)
    config, variables = weights
    arrays = exporting.state_dict(variables, config, "torchvision")
    start = "backbone.body."
    arrays = {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}
    path, out = foreign_files.write_torch_zip(tmp_path / "resnet.pth", arrays), tmp_path / "out"
    assert main(["import", str(path), f"--out={out}", "--arch=tiny_keypoint_rcnn", "--allow-partial"]) == 0
    assert f"--config.train.init={out}" in capsys.readouterr().out
    (person,) = mrcnn_jax.load(out).categories
    assert person.name == "person"
    assert len(person.keypoints) == 17


def test_an_rpn_alone_is_imported_and_finds_objects(tmp_path, capsys):
    config = tiny.model_config()
    config.backbone.norm = "frozen_bn"
    config = zoo.rpn(config)
    variables = tiny.variables(build(config))
    # The anchors themselves are proposed.
    variables["params"]["rpn"]["head"]["anchor_deltas"] = jax.tree.map(
        np.zeros_like, variables["params"]["rpn"]["head"]["anchor_deltas"]
    )
    file, out = tmp_path / "rpn.pkl", tmp_path / "out"
    exporting.export_detectron2(file, variables, config)
    model = mrcnn_jax.load(file)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(model.params), variables)
    assert main(["import", str(file), f"--out={out}", *SIZES]) == 0
    assert "RPN, ResNet-10-FPN, frozen_bn, as detectron2 names it" in capsys.readouterr().out
    model = mrcnn_jax.load(out)
    assert model.classes == ("object",)
    (found,) = model.predict([np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)])
    assert set(found.category_ids) == {1}
    # Scores are logits.
    assert found.scores.min() < 0 < found.scores.max()
    assert main(["export", f"--checkpoint={out}", "--format=torchvision", f"--out={tmp_path / 'a.pth'}"]) == 2
    assert "no RPN alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: {**arrays, "backbone.body.conv1.weight": np.full((8, 3, 7, 7), np.nan, np.float32)}, "NaN"),
        (lambda arrays: {k: v for k, v in arrays.items() if "fpn" not in k}, "does not fit the model"),
        (lambda arrays: {k: v.T if v.ndim == 2 else v for k, v in arrays.items()}, "does not fit the model"),
        (lambda arrays: {f"model.{k}.w": v for k, v in arrays.items()}, "of no model that is known here"),
    ],
)
def test_a_file_that_cannot_be_used_leaves_nothing_behind(weights, tmp_path, capsys, change, words):
    config, variables = weights
    arrays = change(exporting.state_dict(variables, config, "torchvision"))
    path = foreign_files.write_torch_zip(tmp_path / "bad.pth", arrays)
    assert main(["import", str(path), f"--out={tmp_path / 'out'}"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("mrcnn: error: ")
    assert told.count("\n") == 1
    assert words in told
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pth"]


def test_mistakes_on_the_command_line(file, checkpoint, tmp_path, capsys):
    for arguments, words in (
        (["import", str(file), f"--out={checkpoint}"], "exists already"),
        (
            ["import", str(file), f"--out={tmp_path / 'a'}", "--arch=mask_rcnn_r9"],
            "no architecture named 'mask_rcnn_r9'",
        ),
        (["import", str(file), f"--out={tmp_path / 'a'}", "--model.box.iuo=0.5"], "did you mean box.iou"),
        (["export", f"--checkpoint={checkpoint}", "--format=torchvision", f"--out={tmp_path}"], "is a folder"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
