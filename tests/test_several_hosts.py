"""Two hosts do what one does: the same training, the same figures, each image once, whatever comes in between."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import local_hosts

from mrcnn_jax.checkpoints.params import load_params
from mrcnn_jax.config_files import load_config
from mrcnn_jax.train import train

CONFIG = str(Path(__file__).parents[1] / "scripts" / "tiny_hosts.py")
# Two epochs of 100 images in batches of 4; a run is stopped some steps after its first figures and checkpoint.
STEPS, FIRST, IMAGES = 50, 20, 100
KEYS = (
    f"train.steps={STEPS}", f"train.eval_every={FIRST}", f"train.save_every={FIRST}", "train.keep_last=10",
    "train.log_images=True",
    f"data.num_train={IMAGES}",
)  # fmt: skip


def environment() -> dict[str, str]:
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}


def start(workdir: Path, logs: Path, *keys: str):
    arguments = ["train", f"--config={CONFIG}", f"--workdir={workdir}", *(f"--config.{key}" for key in (*KEYS, *keys))]
    return local_hosts.start(2, [*arguments, "--config.train.cpu_devices=2"], logs, environment())


def rows(workdir: Path) -> dict[int, dict[str, str]]:
    """What was measured at each step, in one row or several."""
    found = {}
    with (workdir / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(int(row["step"]), {}).update((key, value) for key, value in row.items() if value)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One host of four devices, not interrupted."""
    workdir = tmp_path_factory.mktemp("alone")
    train(load_config(CONFIG, KEYS), workdir, log=lambda line: None)
    return workdir


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Two hosts of two devices, which share the optimiser's state, until one gets a SIGTERM; then one host of four."""
    workdir, logs = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("logs")
    hosts = start(workdir, logs, "train.shard_optimizer=True")
    until = time.monotonic() + 400
    while not (workdir / "checkpoints" / str(FIRST)).exists():
        assert time.monotonic() < until
        assert all(host.poll() is None for host in hosts), (logs / "host_0.log").read_text()
        time.sleep(0.05)
    hosts[1].send_signal(signal.SIGTERM)
    statuses = [host.wait(120) for host in hosts]
    stopped = max(int(step.name) for step in (workdir / "checkpoints").iterdir())
    train(load_config(CONFIG, KEYS), workdir, log=lambda line: None)
    return workdir, logs, statuses, stopped


def test_a_sigterm_to_one_ends_both_after_the_same_step(interrupted):
    workdir, logs, statuses, stopped = interrupted
    assert statuses == [143, 143]
    assert FIRST <= stopped < STEPS
    for index in range(2):
        assert f"stopped at step {stopped}, saved in {workdir}" in (logs / f"host_{index}.log").read_text()
    # The first host alone tells how far it is.
    assert f"step {FIRST}: box/AP" in (logs / "host_0.log").read_text()
    assert f"step {FIRST}: box/AP" not in (logs / "host_1.log").read_text()


def test_losses_figures_and_parameters_are_those_of_one_host(alone, interrupted):
    """For twenty steps: at some later one, a proposal is on the other side of a threshold by a rounding."""
    one, two = rows(alone), rows(interrupted[0])
    losses = [[float(run[step]["loss"]) for step in range(1, FIRST + 1)] for run in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    params = [load_params(run / "checkpoints" / str(FIRST))[0] for run in (alone, interrupted[0])]
    chex.assert_trees_all_close(*params, atol=1e-5)
    for name in ("box/AP", "box/AP50", "mask/AP", "mask/AR100"):
        assert one[FIRST][name] == two[FIRST][name]


def test_two_hosts_evaluate_to_the_same_digits(alone, tmp_path):
    """After so few steps figures are zeros; each score, box and mask that goes into them has to be the same."""
    written = []
    for count in (1, 2):
        workdir = shutil.copytree(alone, tmp_path / str(count))
        # As many devices in all, so that each has the same images.
        env = environment() | {"JAX_NUM_CPU_DEVICES": str(2 // count)}
        statuses = local_hosts.run(count, ["eval", f"--workdir={workdir}"], tmp_path / "logs", env=env)
        assert statuses == [0] * count
        names = ("predictions_bbox.json", "predictions_segm.json", "metrics.json")
        written.append([(workdir / name).read_bytes() for name in names])
    assert written[0] == written[1]
    assert len({result["image_id"] for result in json.loads(written[0][0])}) == 10


def test_every_image_of_an_epoch_is_seen_once(alone, interrupted):
    workdir, _, _, stopped = interrupted
    names = sorted(file.name for file in (workdir / "images").iterdir())
    assert names == ["from_0_host_0_of_2.csv", "from_0_host_1_of_2.csv", f"from_{stopped}_host_0_of_1.csv"]
    seen, expected = seen_images(workdir), seen_images(alone)
    assert seen == expected
    for epoch in (range(1, 26), range(26, 51)):
        images = [image for step in epoch for image in seen[step]]
        assert len(images) == len(set(images)) == IMAGES


def seen_images(workdir: Path) -> dict[int, list[int]]:
    """The ids of each step's images, those of the first host first."""
    seen = {}
    for file in sorted((workdir / "images").iterdir()):
        for line in file.read_text().splitlines():
            step, *ids = map(int, line.split(","))
            seen.setdefault(step, []).extend(ids)
    return seen


def test_hosts_that_train_differently_are_told_before_they_start(tmp_path):
    port = local_hosts.free_port()
    keys = ("optimizer.learning_rate=0.5", "data.num_train=22")
    hosts = [
        local_hosts.one(index, 2, port, ["train", f"--config={CONFIG}", f"--workdir={tmp_path}", *extra], tmp_path)
        for index, extra in enumerate(([], [f"--config.{key}" for key in keys]))
    ]
    assert [host.wait(120) for host in hosts] == [2, 2]
    name = re.escape(socket.gethostname())
    for index in range(2):
        told = (tmp_path / f"host_{index}.log").read_text()
        assert re.search(
            rf"config.optimizer.learning_rate differs: .* on host 0 \({name}\), 0.5 on host 1 \({name}\)", told
        )
