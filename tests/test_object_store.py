"""Runs whose workdir is in Google Cloud Storage, against a store of our own: what a run on a disk does, they do."""

import csv
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_gcs import FakeGcs

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import local_hosts

from mrcnn_jax import cli
from mrcnn_jax.checkpoints.folders import newest_metadata
from mrcnn_jax.checkpoints.params import load_params
from mrcnn_jax.checkpoints.state import Checkpoints
from mrcnn_jax.config_files import load_config
from mrcnn_jax.errors import Unreachable, UserError
from mrcnn_jax.hosts.stall import Watch
from mrcnn_jax.model import load
from mrcnn_jax.object_store import any_path, local_path, rename, require
from mrcnn_jax.run_folder import RunFolder
from mrcnn_jax.train import train

CONFIG = str(Path(__file__).parents[1] / "scripts" / "tiny_hosts.py") + ":rpn"
STEPS, KILLED = 6, 4
KEYS = (f"train.steps={STEPS}", "train.save_every=1", "train.eval_every=3", "train.log_images=True")
METADATA = {"config": {"a": 1}, "categories": [{"name": "cat"}]}


@pytest.fixture(scope="module")
def store():
    """A store with a bucket called "bucket". One for all tests here: clients keep the address of the first."""
    with FakeGcs("bucket") as fake, pytest.MonkeyPatch.context() as patch:
        for name, value in fake.environment.items():
            patch.setenv(name, value)
        yield fake


def arguments(workdir: object) -> list[str]:
    return ["train", f"--config={CONFIG}", f"--workdir={workdir}", *(f"--config.{key}" for key in KEYS)]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("disk")
    return workdir, train(load_config(CONFIG, KEYS), workdir, log=lambda line: None)


@pytest.fixture(scope="module")
def killed(store, tmp_path_factory):
    """A run that was killed while it wrote a checkpoint, then went on; and the csv's last row at each commit."""
    commits = []

    def before_put(bucket: str, name: str) -> None:
        if name.startswith("run/checkpoints/") and name.count("/") == 3 and name.endswith("/commit_success.txt"):
            rows = store.buckets["bucket"].get("run/metrics.csv")
            last = rows.data.decode().splitlines()[-1].split(",")[0] if rows else "0"
            commits.append((int(name.split("/")[2]), int(last)))
            if commits[-1][0] == KILLED and process.poll() is None:
                process.send_signal(signal.SIGKILL)
                raise ConnectionAbortedError

    command = [sys.executable, "-m", "mrcnn_jax.cli", *arguments("gs://bucket/run"), "--config.train.cpu_devices=4"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    # What a process leaves that is killed.
    environment["TMPDIR"] = str(tmp_path_factory.mktemp("killed"))
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    store.before_put = before_put
    said, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, said
    left = store.below("bucket", "run")
    lines = []
    figures = train(load_config(CONFIG, KEYS), any_path("gs://bucket/run"), log=lines.append)
    store.before_put = lambda bucket, name: None
    return left, lines, figures, commits


def test_a_step_that_was_not_committed_is_not_taken(store, killed):
    left, lines, _, _ = killed
    assert f"checkpoints/{KILLED}/state/manifest.ocdbt" in left
    assert f"checkpoints/{KILLED}/commit_success.txt" not in left
    assert f"resumed from step {KILLED - 1} in gs://bucket/run" in lines
    for name, data in left.items():
        if name.startswith(f"checkpoints/{KILLED}/"):
            store.put("bucket", f"partial/{name}", data)
    assert newest_metadata(any_path("gs://bucket/partial")) is None
    with pytest.raises(UserError, match="gs://bucket/partial holds no checkpoint"):
        load_params("gs://bucket/partial")
    with pytest.raises(UserError, match=f"checkpoints/{KILLED} was not saved to its end"):
        load_params(f"gs://bucket/partial/checkpoints/{KILLED}")


def test_a_killed_run_ends_in_the_bits_of_one_on_a_disk(on_disk, killed):
    workdir, expected = on_disk
    figures = killed[2]
    assert figures | {"minutes": 0} == expected | {"minutes": 0}
    ours, theirs = load_params("gs://bucket/run"), load_params(workdir)
    jax.tree.map(np.testing.assert_array_equal, ours[:2], theirs[:2])
    assert ours[2]["categories"] == theirs[2]["categories"]


def test_the_rows_in_the_store_are_never_older_than_a_checkpoint(killed):
    commits = killed[3]
    assert [step for step, _ in commits] == [*range(1, KILLED + 1), *range(KILLED, STEPS + 1)]
    assert all(row >= step for step, row in commits)


def test_all_files_of_a_run_are_in_the_store(store, on_disk, killed):
    workdir, _ = on_disk
    stored = store.below("bucket", "run")
    for name in ("metadata.json", "metrics.json"):
        assert json.loads(stored[name]) == json.loads((workdir / name).read_bytes())
    ours, theirs = (
        [(row["step"], row["loss"]) for row in csv.DictReader(io.StringIO(text))]
        for text in (stored["metrics.csv"].decode(), (workdir / "metrics.csv").read_text())
    )
    assert ours == theirs
    assert sum(name.startswith("tensorboard/events") for name in stored) == 2
    assert {f"images/from_{step}_host_0_of_1.csv" for step in (0, KILLED - 1)} <= set(stored)


def test_a_model_is_loaded_scored_and_exported(store, killed, tmp_path, capsys):
    assert load("gs://bucket/run").classes[:2] == ("circle", "square")
    assert load(f"gs://bucket/run/checkpoints/{STEPS}").params is not None
    del store.buckets["bucket"]["run/metrics.json"]
    assert cli.main(["eval", "--workdir=gs://bucket/run"]) == 0
    assert "recall of the best" in capsys.readouterr().out
    assert "proposals" in json.loads(store.buckets["bucket"]["run/metrics.json"].data)
    out = tmp_path / "model.safetensors"
    assert cli.main(["export", "--checkpoint=gs://bucket/run", "--format=safetensors", f"--out={out}"]) == 0
    assert out.stat().st_size > 0


def test_training_starts_from_weights_in_the_store(store, killed):
    lines = []
    config = load_config(CONFIG, ("train.steps=1", "train.init=gs://bucket/run"))
    train(config, any_path("gs://bucket/tuned"), log=lines.append)
    assert any(line.startswith("gs://bucket/run: ") and line.endswith(" arrays") for line in lines)


def test_a_run_that_was_copied_from_a_disk_goes_on(store, on_disk):
    workdir, _ = on_disk
    for file in workdir.rglob("*"):
        if file.is_file():
            store.put("bucket", f"copied/{file.relative_to(workdir).as_posix()}", file.read_bytes())
    lines = []
    train(load_config(CONFIG, KEYS), any_path("gs://bucket/copied"), log=lines.append)
    assert f"resumed from step {STEPS} in gs://bucket/copied" in lines


def state(value: float):
    return {"step": jnp.asarray(1), "params": {"kernel": jnp.full((64, 64), value)}}


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(store, caplog):
    workdir, damaged = any_path("gs://bucket/damaged"), []
    with Checkpoints(workdir, METADATA) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {"step": step})
    for turn in range(2):
        for name, data in store.below("bucket", "damaged/checkpoints/2/state").items():
            data = data[:-1] + bytes([data[-1] ^ 1]) if turn else data[: len(data) // 2]
            store.put("bucket", f"damaged/checkpoints/2/state/{name}", data)
        damaged.append(store.below("bucket", "damaged/checkpoints/2"))
        with Checkpoints(workdir, METADATA) as checkpoints:
            restored = checkpoints.restore(state(0))
            assert restored is not None
            assert restored.step == 1
            np.testing.assert_array_equal(restored.state["params"]["kernel"], 1.0)
            checkpoints.save(2, state(2), {"step": 2})
        assert "checkpoint of step 2 cannot be read" in caplog.text
        assert store.below("bucket", f"damaged/checkpoints/2.unreadable{'-2' * turn}") == damaged[turn]
    np.testing.assert_array_equal(load_params(workdir)[0]["kernel"], 2.0)
    assert store.below("bucket", "damaged/checkpoints/2.unreadable") == damaged[0]


def test_what_is_half_set_aside_stays_whole(store):
    """A crash while objects are copied, and one while they are deleted."""
    store.put("bucket", "aside/1/a", b"a")
    store.put("bucket", "aside/1/b/c", b"c")
    for verb, name in (("rewriteTo", "b/c"), ("DELETE", "a")):
        folder, target = (any_path(f"gs://bucket/aside/{part}") for part in ("1", f"1.{verb}"))
        store.refuse = lambda request, end=f"{verb} aside/1/{name}": end in request
        with pytest.raises(OSError, match="Forbidden"):
            rename(folder, target)
        store.refuse = lambda request: False
        left = [store.below("bucket", f"aside/{part.name}") for part in (folder, target)]
        assert {"a": b"a", "b/c": b"c"} in left, verb


def test_stacks_of_a_run_that_stands_still_are_in_the_store(store, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr("mrcnn_jax.hosts.together.fail", lambda *arguments: ended.set())
    with Watch(1e-4, any_path("gs://bucket/still/stall_host_0.txt")):
        assert ended.wait(30)
    assert b"most recent call first" in store.below("bucket", "still")["stall_host_0.txt"]


def test_nothing_is_set_aside_where_no_checkpoint_can_be_read(store):
    workdir = any_path("gs://bucket/lost")
    with Checkpoints(workdir, METADATA) as checkpoints:
        checkpoints.save(1, state(1), {"step": 1})
    before = store.below("bucket", "lost")
    other = {"step": jnp.asarray(1), "params": {"other": jnp.zeros(3)}}
    with Checkpoints(workdir, METADATA) as checkpoints, pytest.raises(UserError, match="none of the checkpoints"):
        checkpoints.restore(other)
    assert store.below("bucket", "lost") == before


def test_two_hosts_without_a_shared_disk_train_together(store, tmp_path):
    keys = ("train.steps=2", "train.save_every=1", "train.cpu_devices=2", "train.log_images=True")
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    command = ["train", f"--config={CONFIG}", "--workdir=gs://bucket/two", *(f"--config.{key}" for key in keys)]
    statuses = local_hosts.run(2, command, tmp_path, 300, environment)
    assert statuses == [0, 0], (tmp_path / "host_0.log").read_text()
    stored = store.below("bucket", "two")
    assert {"metrics.csv", "metrics.json", "curves.png", "checkpoints/2/commit_success.txt"} <= set(stored)
    assert {f"images/from_0_host_{index}_of_2.csv" for index in range(2)} <= set(stored)
    assert not [name for name in stored if "shared" in name]
    assert load_params("gs://bucket/two")[2]["config"]["train"]["steps"] == 2


def test_what_did_not_change_is_not_sent_again(store):
    folder = RunFolder(any_path("gs://bucket/files"))
    (folder.local / "sub").mkdir()
    (folder.local / "one.csv").write_text("a")
    (folder.local / "sub" / "two.csv").write_text("b")
    folder.publish()
    assert store.below("bucket", "files") == {"one.csv": b"a", "sub/two.csv": b"b"}
    with (folder.local / "one.csv").open("a") as file:
        file.write("c")
    folder.publish(every=1000.0)
    assert store.below("bucket", "files")["one.csv"] == b"a"
    asked = len(store.requests)
    folder.publish()
    assert store.below("bucket", "files")["one.csv"] == b"ac"
    assert [request for request in store.requests[asked:] if "two.csv" in request] == []


def test_a_run_that_goes_on_has_its_rows(store):
    store.put("bucket", "again/metrics.csv", b"step\n1\n")
    store.put("bucket", "again/metrics.json", b"{}")
    folder = RunFolder(any_path("gs://bucket/again"))
    assert [file.name for file in folder.local.iterdir()] == ["metrics.csv"]
    assert (folder.local / "metrics.csv").read_text() == "step\n1\n"


def test_all_is_sent_when_an_error_ends_a_run(store):
    folder = RunFolder(any_path("gs://bucket/error"))
    (folder.local / "one.csv").write_text("a")
    with pytest.raises(KeyboardInterrupt), folder:
        raise KeyboardInterrupt
    assert store.below("bucket", "error") == {"one.csv": b"a"}


def test_a_file_that_cannot_be_sent_is_told(store, caplog):
    store.buckets["gone"] = {}
    folder = RunFolder(any_path("gs://gone/run"))
    del store.buckets["gone"]
    (folder.local / "one.csv").write_text("a")
    with pytest.raises(Unreachable, match=r"gs://gone/run/one\.csv cannot be written \(FileNotFoundError"):
        folder.publish()
    # What ended the run comes first.
    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError), folder:
        raise ZeroDivisionError
    assert "gs://gone/run/one.csv cannot be written" in caplog.text


def test_a_workdir_on_a_disk_is_written_to_itself(tmp_path):
    with RunFolder(tmp_path) as folder:
        (folder.local / "one.csv").write_text("a")
    assert [file.name for file in tmp_path.iterdir()] == ["one.csv"]


def test_an_unexpected_error_is_kept_in_the_store(store):
    store.put("bucket", "failed/metrics.csv", b"step\n")
    line = cli._unexpected(ValueError("odd"), any_path("gs://bucket/failed"))
    assert line == "unexpected ValueError: odd (the traceback is in gs://bucket/failed/error.log)"
    assert store.below("bucket", "failed")["error.log"] == b"ValueError: odd\n"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("gs:/bucket/run", "write it as gs://BUCKET/FOLDER"),
        (Path("gs://bucket/run"), "write it as gs://BUCKET/FOLDER"),
        ("gs:bucket/run", "write it as gs://BUCKET/FOLDER"),
        ("GS://bucket/run", "write it as gs://BUCKET/FOLDER"),
        ("gs://bucket", "write it as gs://BUCKET/FOLDER"),
        ("gs:///run", "write it as gs://BUCKET/FOLDER"),
        ("s3://bucket/run", "s3:// is not supported"),
        ("file:///tmp/run", "file:// is not supported"),
    ],
)
def test_a_path_that_is_neither_is_refused(path, told):
    with pytest.raises(UserError, match=told):
        any_path(path)


def test_a_path_is_of_a_disk_or_of_the_store():
    assert any_path("runs/a:b") == Path("runs/a:b")
    assert any_path("C:/runs") == Path("C:/runs")
    assert str(any_path("gs://bucket/run") / "checkpoints") == "gs://bucket/run/checkpoints"
    assert not isinstance(any_path("gs://bucket/run"), Path)
    with pytest.raises(UserError, match="gs://bucket/run is in an object store"):
        local_path("gs://bucket/run")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config=experiments/shapes.py", "--workdir=gs:/bucket/run"],
        ["train", "--config=experiments/shapes.py", "--workdir=s3://bucket/run"],
        ["predict", "--checkpoint=gs:/bucket/run", "--out=out", "a.png"],
        ["export", "--checkpoint=run", "--format=safetensors", "--out=gs://bucket/model"],
    ],
)
def test_the_command_line_makes_no_folder_of_a_misspelt_path(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_is_not_there_is_told_at_once(store, capsys):
    assert cli.main(arguments("gs://nowhere/run")) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("mrcnn: error: gs://nowhere: no such bucket: correct the path, or make it with")
    assert said.err.count("\n") == 1
    for command in (["eval", "--workdir=gs://nowhere/run"], ["predict", "--checkpoint=gs://nowhere/r", "--out=o", "a"]):
        assert cli.main(command) == 2
        assert "gs://nowhere: no such bucket" in capsys.readouterr().err


def test_a_package_or_credentials_that_are_missing_are_told(monkeypatch, tmp_path):
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    # Neither a machine of Google's nor one where gcloud has logged in.
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    with pytest.raises(UserError, match="gs://some: there are no credentials here"):
        require(any_path("gs://some/run"))
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://some needs the package gcsfs: pip install 'mrcnn_jax\[gcs\]'"):
        require(any_path("gs://some/run"))


@pytest.mark.parametrize("key", ["svm.fit=True", "alternating=True"])
def test_trainings_of_several_stages_are_refused_a_store(key, capsys):
    command = ["train", "--config=experiments/shapes.py", "--workdir=gs://bucket/run", f"--config.{key}"]
    assert cli.main(command) == 2
    assert "write to disks only" in capsys.readouterr().err
