"""The loop as users run it: trains, resumes to the same bits after a kill, stops at a loss that is not finite."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import shapes
from mrcnn_jax.checkpoints.params import load_params
from mrcnn_jax.data import sources
from mrcnn_jax.errors import UserError
from mrcnn_jax.model import load
from mrcnn_jax.models import zoo
from mrcnn_jax.train import train

STEPS = 6


def config():
    """The smoke run with fewer channels, a checkpoint at every step and no evaluation but the last."""
    config = shapes.get_config("smoke").copy_and_resolve_references()
    config.model.backbone.update({"depth": 10, "width": 8})
    config.model.fpn.channels = 16
    config.model.rpn.channels = 16
    config.model.box.fc_dims = (16, 16)
    config.model.mask.update({"num_convs": 1, "dim": 8})
    config.data.update({"size": (64, 64), "short_sides": (64,), "max_size": 64, "buckets": ((64, 64),)})
    config.model.preprocess.update({"short_side": 64, "max_size": 64})
    config.train.update({"batch_size": 4, "steps": STEPS, "save_every": 1, "eval_every": 100})
    config.eval.batch_size = 4
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    figures = train(config(), workdir, log=lambda line: None)
    return workdir, figures


def test_a_run_leaves_figures_metrics_and_a_checkpoint(finished):
    workdir, figures = finished
    assert {"box/AP", "box/AP50", "mask/AP", "mask/APs", "minutes"} <= set(figures)
    lines = (workdir / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("step,")
    assert int(lines[-1].split(",")[0]) == STEPS
    _, _, metadata = load_params(workdir)
    assert [category["name"] for category in metadata["categories"]][:2] == ["circle", "square"]


def test_a_finished_run_gives_the_same_figures_again(finished):
    workdir, figures = finished
    again = train(config(), workdir, log=lambda line: None)
    assert again == figures


def test_a_keypoint_model_trains_and_is_scored(tmp_path):
    experiment, lines = config(), []
    experiment.model.mask = None
    experiment.model.keypoint = zoo.keypoint_rcnn().keypoint
    experiment.model.keypoint.update({"conv_dims": (8,), "size": 4})
    experiment.data.update({"keypoints": True, "mask_size": 0, "keep_empty": False, "num_train": 20})
    experiment.seed, experiment.train.steps = 1, 1
    figures = train(experiment, tmp_path, log=lines.append)
    assert {name for name in figures if name.endswith("/AP")} == {"box/AP", "keypoint/AP"}
    records = sources.load(experiment, "train")[0].records
    num_skipped = sum(not (record.keypoints[..., 2] > 0).any() for record in records)
    assert num_skipped > 0
    assert lines[-1] == (
        f"{num_skipped} of 20 training images are left out, which do not have an object with a labelled keypoint"
    )
    # As many as the data set has, whatever the config said.
    (result,) = load(tmp_path).predict([records[0].image()])
    assert result.keypoints.shape == (len(result.boxes), 4, 3)
    assert len(result.boxes) > 0


def in_a_process(workdir, num_devices, before="pass"):
    """Arguments for `subprocess` of the run in a process of its own; there `before` sees the module `loop`."""
    script = (
        "import jax, sys; jax.config.update('jax_platforms', 'cpu');"
        f"jax.config.update('jax_num_cpu_devices', {num_devices}); sys.path[:0] = sys.argv[2:];"
        "import test_train; from importlib import import_module; from pathlib import Path;"
        f"loop = import_module('mrcnn_jax.train'); {before};"
        "loop.train(test_train.config(), Path(sys.argv[1]), log=print)"
    )
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", script, str(workdir), here, os.path.dirname(here)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    return {"args": command, "env": environment}


def test_killed_runs_end_in_the_same_bits(finished, tmp_path):
    expected, _, _ = load_params(finished[0])
    rng = np.random.default_rng()
    stop_at = int(rng.integers(1, STEPS - 1))
    process = subprocess.Popen(**in_a_process(tmp_path, num_devices=4), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if any((tmp_path / "checkpoints" / str(step)).is_dir() for step in range(stop_at, STEPS)):
            process.send_signal(signal.SIGKILL)
        time.sleep(0.02)
    assert process.wait() == -signal.SIGKILL, f"killed at step {stop_at}"
    figures = train(config(), tmp_path, log=lambda line: None)
    params, _, _ = load_params(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert figures["mask/AP"] == finished[1]["mask/AP"]


def test_a_run_goes_on_with_another_number_of_devices(finished):
    stop = "loop.MetricsWriter = lambda workdir, start, enabled: sys.exit(f'goes on from step {start}')"
    process = in_a_process(finished[0], num_devices=1, before=stop)
    done = subprocess.run(**process, capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith(f"goes on from step {STEPS}")


def test_a_loss_that_is_not_finite_names_step_images_and_tensor(tmp_path):
    bad = config()
    bad.optimizer.update({"name": "sgd", "learning_rate": 1e30, "clip_norm": 0.0, "warmup_steps": 0})
    message = r"not finite at step [1-5], image ids \d+, .*: first in .*last good checkpoint"
    with pytest.raises(UserError, match=message):
        train(bad, tmp_path, log=lambda line: None)
    params, _, _ = load_params(tmp_path)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


def test_a_batch_that_cannot_be_dealt_out_names_the_key(tmp_path):
    odd = config()
    odd.train.batch_size = 3
    with pytest.raises(UserError, match=r"config\.train\.batch_size=3 does not divide over 4 devices"):
        train(odd, tmp_path, log=lambda line: None)
