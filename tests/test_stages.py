"""Trainings of several stages: R-CNN's SVMs and box regressors, and Faster R-CNN's four steps."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from test_family import MEMBERS

import mrcnn_jax
from experiments import base
from mrcnn_jax import distributed
from mrcnn_jax.alternating import train_alternating
from mrcnn_jax.checkpoints.metadata import config_from_dict
from mrcnn_jax.checkpoints.params import load_params
from mrcnn_jax.commands import train as command
from mrcnn_jax.data import sources
from mrcnn_jax.errors import UserError
from mrcnn_jax.fitting import stages
from mrcnn_jax.fitting.features import RegionFeatures
from mrcnn_jax.fitting.stages import train_with_svms
from mrcnn_jax.models.build import build


def experiment(member):
    """Two steps on a handful of drawn images of 64 x 64 pixels."""
    config = base.experiment(member, MEMBERS[member]())
    config = base.smoke(config)
    config.model.preprocess.update({"short_side": 64, "max_size": 64})
    config.data.update({
        "size": (64, 64), "short_sides": (64,), "max_size": 64, "buckets": ((64, 64),), "drawn_objects": 3,
        "num_train": 6, "num_proposals": (20, 20), "mask_size": 0,
    })  # fmt: skip
    config.train.update({"batch_size": 4, "steps": 2, "eval_every": 2, "save_every": 2})
    config.eval.batch_size = 4
    return config


def read(folder):
    params, batch_stats, metadata = load_params(folder)
    return jax.device_get({"params": params, "batch_stats": batch_stats}), metadata


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    workdir, lines = tmp_path_factory.mktemp("rcnn"), []
    config = experiment("rcnn")
    config.data.drawn_classes = 4
    figures = train_with_svms(config, workdir, log=lines.append)
    return config, workdir, figures, lines


def test_svms_and_regressors_take_the_place_of_the_last_layers(fitted):
    _, workdir, figures, lines = fitted
    trained, _ = read(workdir)
    detector, metadata = read(workdir / "svms")
    jax.tree.map(np.testing.assert_array_equal, detector["params"]["trunk"], trained["params"]["trunk"])
    predictor = detector["params"]["box_0"]["predictor"]
    with np.load(workdir / "svms.npz") as svms, np.load(workdir / "regressors.npz") as regressors:
        np.testing.assert_array_equal(predictor["cls_score"]["kernel"][:, 1:], svms["kernel"])
        assert not predictor["cls_score"]["kernel"][:, 0].any()
        # Deltas of the network are divided by these.
        weights = np.array([10, 10, 5, 5], np.float32)
        np.testing.assert_allclose(predictor["bbox_pred"]["bias"].reshape(-1, 4), regressors["bias"] * weights)
    box = metadata["config"]["model"]["box"]
    assert (box["score"], box["regress"]) == ("margin", True)
    assert {"box/AP", "minutes"} <= set(figures)
    # Each class is told of, those without an object too.
    assert sum(line.startswith("svms: ") for line in lines) == 4
    assert sum(line.startswith("regressors: ") for line in lines) == 4


def test_a_stage_that_is_done_is_not_repeated(fitted, monkeypatch):
    config, workdir, figures, _ = fitted

    def refuse(*_, **__):
        raise AssertionError("fitted again")

    monkeypatch.setattr(stages, "fit_svms", refuse)
    monkeypatch.setattr(stages, "fit_box_regressors", refuse)
    again = train_with_svms(config, workdir, log=lambda line: None)
    assert again == figures
    config = config.copy_and_resolve_references().unlock()
    config.svm.c = 0.5
    with pytest.raises(AssertionError, match="fitted again"):
        train_with_svms(config, workdir, log=lambda line: None)
    (workdir / "svms.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="delete it, and it is fitted anew"):
        train_with_svms(config, workdir, log=lambda line: None)


@pytest.mark.parametrize("which", ["scores", "deltas"])
def test_regions_that_are_not_near_are_left_out_before_the_network(fitted, which):
    config, workdir, _, _ = fitted
    variables, metadata = read(workdir)
    mesh = distributed.make_mesh()
    model = build(config_from_dict(metadata["config"]).model)
    dataset, _ = sources.load(config, "train")
    records = dataset.records
    # One image without objects, one without proposals.
    without_objects = replace(records[3], difficult=np.ones(len(records[3].boxes), bool)).without_difficult()
    without_proposals = replace(records[4], proposals=None)
    records = [*(records[i] for i in range(3)), without_objects, without_proposals, records[5]]
    dataset = replace(dataset, records=records)
    features = RegionFeatures(model, distributed.replicate(variables, mesh), dataset, config, mesh, which)
    everything = list(features())
    assert [len(regions.features) for regions in everything] == [
        (0 if i == 4 else 20) + len(records[i].boxes) for i in np.random.default_rng(0).permutation(6)
    ]
    for over in (0.3, 1.0):
        for some, full in zip(features(over=over), everything, strict=True):
            kept = (full.classes > 0) | (full.overlaps.max(axis=1) > over)
            for name in ("classes", "overlaps", "target_classes", "deltas"):
                np.testing.assert_array_equal(getattr(some, name), getattr(full, name)[kept])
            np.testing.assert_allclose(some.features, full.features[kept], rtol=1e-5, atol=1e-6)
    assert [len(regions.classes) for regions in features(first=2)] == [len(one.classes) for one in everything[:2]]


def test_the_detector_is_used_like_any_other(fitted):
    config, workdir, _, _ = fitted
    dataset, _ = sources.load(config, "val")
    model = mrcnn_jax.load(workdir / "svms", overrides={"box.score_threshold": -100.0})
    record = dataset.records[0]
    (found,) = model.predict([record.image()], [(record.proposals.boxes, record.proposals.scores)])
    assert len(found.scores) > 0
    assert found.scores.min() < 0


def test_four_steps_share_a_backbone(tmp_path):
    config = experiment("faster")
    lines = []
    figures = train_alternating(config, tmp_path, log=lines.append)
    assert {"box/AP", "minutes"} <= set(figures)
    runs = {name: read(tmp_path / name)[0]["params"] for name in ("1_rpn", "2_fast_rcnn", "3_rpn", "4_fast_rcnn")}
    detector, metadata = read(tmp_path / "detector")
    for name in ("3_rpn", "4_fast_rcnn"):
        jax.tree.map(np.testing.assert_array_equal, runs[name]["backbone"], runs["2_fast_rcnn"]["backbone"])
    jax.tree.map(np.testing.assert_array_equal, detector["params"]["rpn"], runs["3_rpn"]["rpn"])
    jax.tree.map(np.testing.assert_array_equal, detector["params"]["box_0"], runs["4_fast_rcnn"]["box_0"])
    assert np.any(
        runs["1_rpn"]["backbone"]["conv1_1"]["kernel"] != runs["2_fast_rcnn"]["backbone"]["conv1_1"]["kernel"]
    )
    assert metadata["config"]["model"]["rpn"]["post_nms"] == list(config.model.rpn.post_nms)
    # Nothing is done twice, and the experiment itself is as it was.
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.pkl")}
    assert len(files) == 4
    assert train_alternating(config, tmp_path, log=lambda line: None) == figures
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.pkl")} == files
    assert config.model.box is not None


def test_one_way_to_train_at_a_time(tmp_path):
    config = experiment("rcnn")
    config.svm.fit = config.alternating = True
    with pytest.raises(UserError, match="set one of them to False"):
        command.run(config, tmp_path)
