"""Somebody else's weights: what they are recognised as, where their arrays go, and what is said of the rest."""

import re

import foreign_files
import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from mrcnn_jax.checkpoints import exporting
from mrcnn_jax.checkpoints.importing import assumed_classes, convert, import_weights
from mrcnn_jax.checkpoints.initial import adopt, initial_variables, read_source
from mrcnn_jax.checkpoints.names import entries, flatten
from mrcnn_jax.checkpoints.recognise import is_plain, recognise
from mrcnn_jax.checkpoints.weight_files import WeightFile
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.errors import UserError
from mrcnn_jax.models import architectures, plain, zoo
from mrcnn_jax.models.build import build


def arrays_of(config: ConfigDict, library: str, seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict of random numbers for a model."""
    rng = np.random.default_rng(seed)
    return {
        e.key: np.array(3, np.int64) if e.is_counter else rng.random(e.key_shape, np.float32)
        for e in entries(config, library)
    }


def tiny_config(library: str = "detectron2") -> ConfigDict:
    config = tiny.model_config()
    config.backbone.norm = "frozen_bn"
    return zoo.torchvision_v1(config) if library == "torchvision" else config


# Neither library has plain networks, nor C5, whose arrays are those of DC5.
OF_A_LIBRARY = [
    name for name, config in architectures.NAMED.items() if not is_plain(config()) and not name.endswith("_c5")
]


@pytest.mark.parametrize("name", OF_A_LIBRARY)
def test_every_named_architecture_is_recognised(name):
    expected = architectures.named(name)
    library = "torchvision" if name.startswith("torchvision") else "detectron2"
    shapes = {e.key: e.key_shape for e in entries(expected, library)}
    found = recognise(shapes, library, "weights.pth")
    # Which layers are not trained, nobody can tell.
    found.backbone.frozen_stages = expected.backbone.frozen_stages
    assert found.to_dict() == expected.to_dict()


def test_widths_and_classes_are_read_off():
    config = tiny_config()
    found = convert(WeightFile(arrays_of(config, "detectron2")), "w").config
    for part, keys in (
        ("backbone", ("depth", "width", "norm")), ("fpn", ("channels", "norm")), ("rpn", ("channels", "num_convs")),
        ("box", ("fc_dims", "num_convs", "norm", "class_agnostic")), ("mask", ("dim", "num_convs", "norm")),
    ):  # fmt: skip
        for key in keys:
            assert found[part][key] == config[part][key], f"{part}.{key}"
    assert found.num_classes == tiny.NUM_CLASSES


def old_torchvision_name(key: str) -> str:
    key = re.sub(r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2.", key)
    key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    return re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)


def test_torchvisions_published_files_have_older_names():
    config = zoo.torchvision_v1(tiny_config())
    arrays = arrays_of(config, "torchvision")
    old = {old_torchvision_name(key): array for key, array in arrays.items()}
    assert sum(a != b for a, b in zip(arrays, old, strict=True)) == 2 * (8 + 1 + 1)
    expected, found = convert(WeightFile(arrays), "new"), convert(WeightFile(old), "old")
    jax.tree.map(np.testing.assert_array_equal, found.leaves, expected.leaves)
    assert found.config.backbone.norm_eps == 0
    assert any("renamed: 20 (" in line for line in found.report)


def caffe2_name(key: str) -> str:
    branch = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    *module, leaf = key.split(".")
    norm = "_bn" if module[-1] == "norm" else ""
    kind = ({"weight": "s", "bias": "b"} if norm else {"weight": "w", "bias": "b"})[leaf]
    if module[0] == "stem":
        return f"res_conv1_bn_{kind}" if norm else f"conv1_{kind}"
    return f"{module[0]}_{module[1]}_{branch[module[2]]}{norm}_{kind}"


def test_microsofts_resnet_under_caffe2s_names():
    config = zoo.mask_rcnn(50)
    arrays = {
        key.removeprefix("backbone.bottom_up."): array
        for key, array in arrays_of(config, "detectron2").items()
        if key.startswith("backbone.bottom_up.") and "running" not in key
    }
    caffe2 = {caffe2_name(key): array for key, array in arrays.items()}
    caffe2 |= {"fc1000_w": np.ones((10, 4), np.float32), "fc1000_b": np.ones(10, np.float32)}
    found = convert(WeightFile(caffe2), "R-50.pkl", backbone_of=config)
    stem = arrays["stem.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found.leaves["params/backbone/stem/conv1/kernel"], stem)
    shortcut = found.leaves["batch_stats/backbone/res3_0/shortcut_norm/scale"]
    np.testing.assert_array_equal(shortcut, arrays["res3.0.shortcut.norm.weight"])
    # Without statistics, so that the factor is exactly 1.
    np.testing.assert_array_equal(found.leaves["batch_stats/backbone/stem/norm/var"], np.float32(1 - 1e-5))
    assert len(found.leaves) == 53 * 5
    assert (found.config.preprocess.bgr, found.config.preprocess.std) == (True, (1.0, 1.0, 1.0))
    assert found.config.backbone.stride_in_1x1
    assert "dropped, no part of a detector: 2 (fc1000_w, fc1000_b)" in "\n".join(found.report)


@pytest.mark.parametrize("base", ["mask_rcnn_r50_fpn", "mask_rcnn_r50_c4"])
def test_torchvisions_resnet_begins_any_model(base):
    config = architectures.named(base)
    arrays = {
        key.removeprefix("backbone.body."): array
        for key, array in arrays_of(zoo.torchvision_v2(zoo.mask_rcnn(50)), "torchvision").items()
        if key.startswith("backbone.body.")
    }
    found = convert(WeightFile(arrays), "resnet50.pth", backbone_of=config)
    last = "trunk" if base.endswith("c4") else "backbone"
    np.testing.assert_array_equal(
        found.leaves[f"params/{last}/res5_2/conv3/kernel"], arrays["layer4.2.conv3.weight"].transpose(2, 3, 1, 0)
    )
    assert not found.config.preprocess.bgr
    assert not found.config.backbone.stride_in_1x1
    assert found.categories is None
    with pytest.raises(UserError, match="leave --classes out"):
        convert(WeightFile(arrays), "resnet50.pth", backbone_of=config, categories=[Category(1, "a")])
    assert {path.split("/")[1] for path in found.leaves} == {"backbone", last}


def change(key: str, value: np.ndarray | None = None, rename: str = ""):
    def apply(arrays):
        array = arrays.pop(key)
        if value is not None or rename:
            arrays[rename or key] = array if value is None else value
        return arrays

    return apply


FC1, CLS = "roi_heads.box_head.fc1.weight", "roi_heads.box_predictor.cls_score.weight"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change("backbone.fpn_output3.weight"), "it lacks 1 (params/fpn/output3/kernel)"),
        (change("backbone.fpn_output3.weight", rename="backbone.fpn_output9.weight"), "the model has no place for 1 ("),
        (change(FC1, np.ones((784, 16), np.float32)), "another shape have"),
        (change(CLS), "there is no classifier"),
        (change(CLS, np.ones(4, np.float32)), "there is no classifier"),
        (change("backbone.bottom_up.stem.conv1.weight"), "backbone.bottom_up.stem.conv1.weight is missing"),
        (change("backbone.bottom_up.res3.0.conv1.weight"), "a ResNet of 1, 0, 1, 1 blocks"),
        (lambda arrays: {f"student.{key}": array for key, array in arrays.items()}, "are of no model that is known"),
        (
            lambda arrays: arrays | {"rpn_head.conv.weight": np.ones(3, np.float32)},
            "the model has no place for 1 (rpn_h",
        ),
        (lambda arrays: {k: v for k, v in arrays.items() if "bottom_up" in k}, "is a backbone alone"),
    ],
)
def test_weights_that_do_not_fit(spoil, words):
    arrays = spoil(arrays_of(tiny_config(), "detectron2"))
    with pytest.raises(UserError, match=re.escape(words)) as told:
        convert(WeightFile(arrays), "weights.pkl")
    assert str(told.value).startswith("weights.pkl")
    assert "\n" not in str(told.value)


def test_what_fits_is_taken_when_that_is_asked_for():
    arrays = change("backbone.fpn_output3.weight")(arrays_of(tiny_config(), "detectron2"))
    found = convert(WeightFile(arrays), "w", allow_partial=True)
    assert found.missing == ("params/fpn/output3/kernel",)
    assert "left at initialisation: 1 (params/fpn/output3/kernel)" in "\n".join(found.report)
    variables = flatten(found.variables())
    assert np.ptp(variables["params/fpn/output3/kernel"]) > 0
    bias = "params/fpn/output3/bias"
    np.testing.assert_array_equal(variables[bias], found.leaves[bias])


@pytest.mark.parametrize("kind", ["torchvision", "detectron2"])
def test_an_exported_file_comes_back(kind, tmp_path):
    config = tiny_config(kind)
    variables = tiny.variables(build(config))
    path = tmp_path / "model.weights"
    assert getattr(exporting, f"export_{kind}")(path, variables, config) == []
    found = import_weights(path)
    jax.tree.map(np.testing.assert_array_equal, found.variables(), variables)


def test_a_model_of_other_conventions_is_exported_with_a_word():
    config = tiny.model_config()
    config.backbone.norm = "frozen_bn"
    variables = tiny.variables(build(config))
    arrays = exporting.state_dict(variables, config, "torchvision")
    # The background, whose boxes and masks nobody reads, stands in front.
    boxes, masks = (
        arrays["roi_heads.box_predictor.bbox_pred.weight"],
        arrays["roi_heads.mask_predictor.mask_fcn_logits.bias"],
    )
    assert (boxes.shape, masks.shape) == ((4 * 4, 16), (4,))
    assert not boxes[:4].any()
    np.testing.assert_array_equal(boxes[4:].T, variables["params"]["box_0"]["predictor"]["bbox_pred"]["kernel"])
    notes = exporting.other_conventions(config, "torchvision")
    assert "torchvision has roi.aligned=False, and this model True: detections will differ" in notes


def test_boxes_that_serve_all_classes_are_repeated_for_torchvision():
    config = tiny_config()
    config.box.class_agnostic = config.mask.class_agnostic = True
    variables = tiny.variables(build(config))
    arrays = exporting.state_dict(variables, config, "torchvision")
    boxes = arrays["roi_heads.box_predictor.bbox_pred.bias"].reshape(4, 4)
    np.testing.assert_array_equal(boxes[1:], [variables["params"]["box_0"]["predictor"]["bbox_pred"]["bias"]] * 3)
    assert exporting.state_dict(variables, config, "detectron2")["roi_heads.box_predictor.bbox_pred.bias"].shape == (4,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.backbone.update({"norm": "gn"}), "no group norm"),
        (lambda c: zoo.cascade(c), "with a pyramid alone"),
        (lambda c: zoo.c4(c), "with a pyramid alone"),
        (lambda c: zoo.rpn(c), "no RPN alone"),
    ],
)
def test_what_torchvision_has_no_model_for(change, words):
    config = tiny_config()
    change(config)
    with pytest.raises(UserError, match=words):
        exporting.state_dict({"params": {}}, config, "torchvision")


@pytest.mark.parametrize("library", ["torchvision", "detectron2"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: plain.fast_rcnn("small"), "its networks are ResNets"),
        (lambda _: plain.rcnn("small"), "its networks are ResNets"),
        (lambda c: c.backbone.update({"non_local": True}), "no non-local block"),
        (lambda c: c.mask.update({"fc_dims": (16,)}), "made by convolutions"),
        (lambda c: c.mask.update({"softmax": True}), "made by convolutions"),
    ],
)
def test_what_no_library_has_a_model_for(library, change, words):
    config = tiny_config()
    config = change(config) or config
    with pytest.raises(UserError, match=f"{library} has no model like this one: .*{words}"):
        exporting.state_dict({"params": {}}, config, library)


def rpn_config(base: str) -> ConfigDict:
    config = tiny_config()
    if base == "c4":
        config = zoo.c4(config)
        config.rpn.channels = 16
    return zoo.rpn(config)


@pytest.mark.parametrize("base", ["fpn", "c4"])
def test_an_rpn_alone_goes_out_and_comes_back(base, tmp_path):
    config = rpn_config(base)
    variables = tiny.variables(build(config))
    pickle, own = tmp_path / "rpn.pkl", tmp_path / "rpn.safetensors"
    assert exporting.export_detectron2(pickle, variables, config) == []
    exporting.export_safetensors(own, variables, config, assumed_classes(config))
    for path in (pickle, own):
        found = import_weights(path)
        jax.tree.map(np.testing.assert_array_equal, found.variables(), variables)
        assert [category.name for category in found.categories] == ["object"]
        assert f"RPN, ResNet-10-{base.upper()}, frozen_bn" in found.report[0]
    keys = exporting.state_dict(variables, config, "detectron2")
    assert {key.partition(".")[0] for key in keys} == {"backbone", "proposal_generator"}
    assert build(config).trunk is None


def test_an_rpn_out_of_a_detector():
    arrays = arrays_of(tiny_config(), "detectron2")
    found = convert(WeightFile(arrays), "w", model=rpn_config("fpn"), allow_partial=True)
    assert found.missing == ()
    assert {path.split("/")[1] for path in found.leaves} == {"backbone", "fpn", "rpn"}
    assert "dropped, no place here: 14 (roi_heads.box" in "\n".join(found.report)


CLASSES = tuple(Category(i, name) for i, name in enumerate(("cat", "Dog", "horse"), start=1))


def test_heads_follow_the_names_of_classes(tmp_path):
    config = tiny_config("torchvision")
    source_arrays = arrays_of(config, "torchvision")
    path = foreign_files.write_torch_zip(tmp_path / "w.pth", source_arrays)
    experiment = ConfigDict({"seed": 0, "model": tiny.model_config(), "train": {"init": str(path)}})
    source = read_source(experiment)
    # Tiny models have no published classes.
    source = type(source)(source.name, source.config, CLASSES, source.leaves, report=source.report)
    experiment, lines = adopt(experiment, source)
    assert experiment.model.roi.aligned is False
    assert "roi.aligned (True -> False)" in lines[0] or "more" in lines[0]
    wanted = (Category(1, "dog"), Category(2, "zebra"))
    with experiment.unlocked():
        experiment.model.num_classes = 2
    variables, report = initial_variables(build(experiment.model), experiment, source, wanted)
    assert any(
        "classes: 1 of 2 known to these weights (3 classes) by name; at initialisation: zebra" in x for x in report
    )
    found = flatten(variables)
    cls = found["params/box_0/predictor/cls_score/kernel"]
    np.testing.assert_array_equal(cls[:, :2], source_arrays[CLS].T[:, [0, 2]])
    assert not np.any(cls[:, 2] == source_arrays[CLS].T[:, 3])
    boxes = found["params/box_0/predictor/bbox_pred/bias"].reshape(3, 4)
    np.testing.assert_array_equal(
        boxes[:2], source_arrays["roi_heads.box_predictor.bbox_pred.bias"].reshape(4, 4)[[0, 2]]
    )
    np.testing.assert_array_equal(
        found["params/tasks_mask/head/predictor/bias"][:2],
        source_arrays["roi_heads.mask_predictor.mask_fcn_logits.bias"][[0, 2]],
    )


def test_an_experiment_keeps_sizes_and_what_was_set_by_hand():
    experiment = ConfigDict({"model": tiny.model_config(), "model_overrides": ("rpn.nms_threshold",)})
    experiment.model.rpn.nms_threshold = 0.6
    experiment.model.preprocess.short_side = 64
    weights = convert(WeightFile(arrays_of(tiny_config("torchvision"), "torchvision")), "w")
    adopted, _ = adopt(experiment, weights)
    assert adopted.model.rpn.nms_threshold == 0.6
    assert adopted.model.preprocess.short_side == 64
    assert adopted.model.preprocess.interpolation == "torchvision"
    assert adopted.model.rpn.pre_nms == experiment.model.rpn.pre_nms
    assert experiment.model.preprocess.interpolation == "pil"
