"""The short version of `scripts/benchmark`: every part runs and says what it should, on the smallest problem."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import tiny

from mrcnn_jax.models import architectures

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def report():
    from benchmark_report import Report

    return Report({"device": "none"})


def test_rounds_alternate_and_short_work_is_repeated(monkeypatch):
    import benchmark_report

    log = []
    clock = iter(range(100))
    monkeypatch.setattr(benchmark_report.time, "perf_counter", lambda: next(clock) / 100)
    works = {name: lambda times, name=name: log.append((name, times)) for name in "ab"}
    samples = benchmark_report.measure(works, repeats=3)
    # A call seems to take 0.01 s, so thirty fill a round of 0.3 s.
    assert log == [("a", 1), ("a", 1), ("b", 1), ("b", 1)] + [("a", 30), ("b", 30)] * 3
    assert samples == {"a": pytest.approx([0.01 / 30] * 3), "b": pytest.approx([0.01 / 30] * 3)}


def test_figures_are_printed_and_written(report, tmp_path, capsys):
    report.rates("train", "images/s", 8, {"ours": [2.0, 4.0, 1.0]})
    report.note("a remark")
    report.write(tmp_path / "out.json")
    assert "4 images/s (2 .. 8)" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["device"] == "none"
    assert written["notes"] == ["a remark"]
    assert written["figures"][0] | {"load": 0} == {
        "part": "train", "name": "ours", "unit": "images/s", "samples": [4, 2, 8], "load": 0,
        "median": 4, "min": 2, "max": 8,
    }  # fmt: skip


def test_evaluation(report):
    import benchmark_host

    benchmark_host.evaluation(report, repeats=1, num_images=16)
    assert [f.unit for f in report.figures] == ["images/s", "images/s a core", "s", "s"]
    assert all(f.median > 0 for f in report.figures)


def test_synthetic_evaluation_has_as_many_detections_as_it_says():
    import benchmark_host

    results = benchmark_host.coco_results(benchmark_host._detections(0), 1, (480, 640), list(range(1, 81)))
    truth, boxes, masks = benchmark_host._coco([results], 3)
    assert (len(boxes), len(masks), len(truth["annotations"])) == (300, 300, 21)


def test_ops(report):
    import benchmark_ops

    benchmark_ops.ops(report, repeats=1, size=(128, 160), channels=8)
    assert len(report.figures) == 10
    assert {f.unit for f in report.figures} == {"ms"}


def test_programs_run_and_their_cost_is_told(report, monkeypatch):
    import benchmark_detector
    import benchmark_main

    # JAX describes the arguments of a compiled program with containers of its own leaves.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    config = tiny.model_config()
    config.num_classes = 80
    monkeypatch.setitem(architectures.NAMED, "tiny", lambda: config)
    settings = benchmark_detector.Settings("tiny", (64, 64), 4, "float32")
    detector = benchmark_detector.Detector(settings)
    monkeypatch.setattr(benchmark_detector, "Detector", lambda settings: detector)

    found = benchmark_detector.cold_start(settings)
    assert found["train"] > 0
    assert found["inference"] > 0
    assert found["rss"] > 50
    for part in ("train", "inference"):
        getattr(detector, part)(2)
        benchmark_main._cost(report, settings, part, "tiny", detector, [1.0])
    assert int(detector.state.step) == 3
    assert bool(detector.state.finite)
    assert [f.unit for f in report.figures] == ["MiB", "GFLOP an image", "GFLOP/s"] * 2
    # Four devices, one image each: what a device computes in a second is what an image takes.
    assert report.figures[1].samples == report.figures[2].samples


def test_only_the_last_frozen_norm_of_a_block_is_silenced():
    from benchmark_detector import _silence_branches

    blocks = {"stem": ("norm1",), "res2_0": ("norm1", "norm2", "norm3", "shortcut_norm"), "res3_1": ("norm1", "norm2")}
    backbone = {block: {norm: {"scale": np.ones(2), "bias": np.ones(2)} for norm in blocks[block]} for block in blocks}
    _silence_branches({"batch_stats": {"backbone": backbone}})
    zero = {(b, norm) for b, norms in backbone.items() for norm, leaf in norms.items() if not leaf["scale"].any()}
    assert zero == {("res2_0", "norm3"), ("res3_1", "norm2")}
    assert all(leaf["bias"].all() for norms in backbone.values() for leaf in norms.values())
    # A trained norm keeps its scale with the parameters.
    _silence_branches({"params": {}})


def test_a_second_start_gets_the_cache_of_the_first(report, monkeypatch):
    import benchmark_main
    from benchmark_detector import Settings

    caches = []

    def run(command, *, env, **_):
        caches.append(env["JAX_COMPILATION_CACHE_DIR"])
        assert json.loads(command[-1])["size"] == [64, 64]
        found = {"train": 2.0, "inference": 1.0, "first_step": time.time() + 9, "rss": 100.0, "device": None}
        return subprocess.CompletedProcess(command, 0, stdout="some log\n" + json.dumps(found))

    monkeypatch.setattr(benchmark_main.subprocess, "run", run)
    benchmark_main._cold_starts(report, Settings("mask_rcnn_r18_fpn", (64, 64), 1, "float32"), repeats=2)
    assert caches[0] == caches[1] != caches[2] == caches[3]
    assert [f.median for f in report.figures] == pytest.approx([2, 1, 9, 2, 1, 9, 100], abs=0.5)
    assert [len(f.samples) for f in report.figures] == [2, 2, 2, 2, 2, 2, 4]


def test_without_torchvision_a_note_says_so(report, monkeypatch):
    import benchmark_main
    from benchmark_detector import Settings

    monkeypatch.setitem(sys.modules, "torch", None)
    assert benchmark_main._peer(report, Settings("mask_rcnn_r50_fpn", (64, 64), 1, "float32")) is None
    assert report.notes[0].startswith("torchvision is not measured: ")


@pytest.mark.parametrize("wrong", ["--parts=trian", "--size=100x100", "--model=yolo"])
def test_a_wrong_option_is_refused(wrong, monkeypatch, capsys):
    import benchmark_main

    monkeypatch.setattr(sys, "argv", ["benchmark", wrong])
    with pytest.raises(SystemExit):
        benchmark_main.main()
    assert wrong.partition("=")[0] in capsys.readouterr().err


def test_the_data_part_alone(tmp_path, monkeypatch):
    import benchmark_main

    monkeypatch.setattr(sys, "argv", ["benchmark", "--parts=data", "--repeats=2", f"--json={tmp_path / 'out.json'}"])
    benchmark_main.main()
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["settings"] == "torchvision_mask_rcnn_r50_fpn, 256x320, batch 1, float32"
    assert {"device", "host", "versions", "commit"} <= written.keys()
    assert [figure["unit"] for figure in written["figures"]] == ["images/s", "images/s a core"]
    assert [len(figure["samples"]) for figure in written["figures"]] == [2, 2]
