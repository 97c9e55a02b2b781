"""The `mrcnn` command: quick help, one clear line for every mistake, arguments handed on as they are."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mrcnn_jax import cli
from mrcnn_jax.commands import check as check_command
from mrcnn_jax.config_files import load_config
from mrcnn_jax.errors import Unreachable, UserError
from mrcnn_jax.interruption import Interrupted

EXPERIMENT = """
from ml_collections import ConfigDict

def get_config(mode):
    if mode not in ("", "smoke"):
        raise ValueError(f"unknown mode '{mode}': there is '' and 'smoke'")
    config = ConfigDict()
    config.name = "tiny"
    config.seed = 3
    config.data = ConfigDict({"root": "", "sides": (640, 800), "buckets": ((8, 16), (16, 8)), "jitter": ()})
    config.train = ConfigDict({"steps": 3 if mode == "smoke" else 100, "rate": 0.1, "ema": False, "limit": None})
    return config.lock()
"""


@pytest.fixture
def experiment(tmp_path) -> Path:
    file = tmp_path / "tiny.py"
    file.write_text(EXPERIMENT)
    return file


@pytest.fixture
def calls(monkeypatch) -> dict:
    """Replaces every command's handler; the arguments it got are kept under its name."""
    got = {}

    def keep(name, arguments):
        got[name] = arguments
        return 0

    for name in ("demo", "check", "train", "evaluate", "predict", "score"):
        handler = SimpleNamespace(run=lambda *arguments, name=name: keep(name, arguments))
        monkeypatch.setitem(sys.modules, f"mrcnn_jax.commands.{name}", handler)
    return got


def failing(monkeypatch, error: BaseException, name: str = "train") -> None:
    def run(*arguments):
        raise error

    monkeypatch.setitem(sys.modules, f"mrcnn_jax.commands.{name}", SimpleNamespace(run=run))


def test_help_names_every_command_and_is_quick():
    before = os.times()
    done = subprocess.run([sys.executable, "-m", "mrcnn_jax.cli", "--help"], capture_output=True, text=True, check=True)
    after = os.times()
    # Of the processor, not of the clock: other work may share the machine.
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    for name in ("demo", "check", "train", "eval", "predict", "propose", "score"):
        assert f"\n    {name} " in done.stdout
    # 0.06 s alone; importing JAX takes a second or more, on any machine.
    assert seconds < 1.0


def test_help_imports_no_jax():
    code = "import sys, mrcnn_jax.cli; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_train_gets_the_config_with_its_mode_and_overrides(experiment, calls, tmp_path):
    run = tmp_path / "run"
    arguments = ["train", f"--config={experiment}:smoke", "--config.train.rate=1", f"--workdir={run}"]
    assert cli.main([*arguments, "--config.data.root=a=b c", "--config.data.jitter=(0.1, 2.0)"]) == 0
    config, workdir = calls["train"]
    assert workdir == run
    assert config.train.to_dict() == {"steps": 3, "rate": 1.0, "ema": False, "limit": None}
    assert isinstance(config.train.rate, float)
    assert config.data.root == "a=b c"
    assert config.data.jitter == (0.1, 2.0)
    assert config.is_locked


def test_each_command_hands_on_its_arguments(experiment, calls):
    assert cli.main(["score", "--gt=a.json", "--dt=b.json", "--type=segm"]) == 0
    assert calls["score"] == (Path("a.json"), Path("b.json"), "segm", "hotcoco", "coco")
    assert cli.main(["predict", "--checkpoint=run", "a.jpg", "b.jpg", "--out=out", "--threshold=0.3"]) == 0
    assert calls["predict"] == (Path("run"), ["a.jpg", "b.jpg"], Path("out"), 0.3, None)
    assert cli.main(["eval", "--workdir=run", "--json=figures.json"]) == 0
    assert calls["evaluate"] == (None, Path("run"), None, Path("figures.json"))
    assert cli.main(["demo", f"--config={experiment}"]) == 0
    assert calls["demo"][0].name == "tiny"
    assert calls["demo"][1] == Path("runs/demo")
    assert cli.main(["check", "--images=images", "--annotations=a.json"]) == 0
    assert calls["check"] == (None, Path("images"), Path("a.json"), None)


def test_check_passes_on_its_status(monkeypatch):
    monkeypatch.setitem(sys.modules, "mrcnn_jax.commands.check", SimpleNamespace(run=lambda *arguments: 1))
    assert cli.main(["check", "--images=i", "--annotations=a.json"]) == 1


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.stepz=3", "there is no config.train.stepz: did you mean train.steps?"),
        ("steps=3", "there is no config.steps: did you mean train.steps?"),
        ("train.steps.x=3", "there is no config.train.steps.x: did you mean train.steps?"),
        ("train=3", "config.train is a group: set one of its keys, such as config.train.ema, config.train.limit"),
        ("train.steps=many", "config.train.steps=many is not a whole number, such as 100"),
        ("train.steps=1.5", "config.train.steps=1.5 is not a whole number"),
        ("train.rate=fast", "config.train.rate=fast is not a number, such as 0.1"),
        ("train.ema=1", "config.train.ema=1 is not true or false"),
        ("data.sides=640", "config.data.sides=640 is not a tuple, such as (640, 800)"),
        ("data.buckets=(8,16)", "config.data.buckets=(8,16) is not a tuple, such as ((8, 16), (16, 8))"),
        ("train.steps", "config.train.steps has no value: write --config.train.steps=VALUE"),
    ],
)
def test_a_wrong_override_is_one_line(experiment, calls, capsys, tmp_path, override, line):
    assert cli.main(["train", f"--config={experiment}", f"--workdir={tmp_path}", f"--config.{override}"]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.startswith("mrcnn: error: ")
    assert told.count("\n") == 1
    assert calls == {}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.ema=true", True),
        ("train.limit=3", 3),
        ("train.limit=some text", "some text"),
        ("train.rate=None", None),
        ("data.sides=(1,)", (1,)),
        ("data.sides=[1, 2]", (1, 2)),
        ("data.buckets=((4, 4),)", ((4, 4),)),
        ("data.root=3", "3"),
    ],
)
def test_values_take_the_type_of_what_they_replace(experiment, override, value):
    config = load_config(str(experiment), [override])
    group, key = override.partition("=")[0].split(".")
    assert config[group][key] == value
    assert type(config[group][key]) is type(value)


def test_an_experiment_that_cannot_be_used_is_one_line(experiment, tmp_path):
    with pytest.raises(UserError, match=r"no file .*tinny.py: did you mean tiny.py"):
        load_config(str(tmp_path / "tinny.py"))
    with pytest.raises(UserError, match=r"unknown mode 'smok': there is '' and 'smoke'"):
        load_config(f"{experiment}:smok")
    other = tmp_path / "other.py"
    for text, line in (
        ("x = 1\n", "defines no get_config"),
        ("x = \n", r"other.py:1: SyntaxError"),
        ("x = 1\nimport nothing_of_that_name\n", r"other.py:2: ModuleNotFoundError"),
        ("def get_config(mode):\n    return missing\n", r"other.py:2: NameError"),
        ("def get_config(mode):\n    return {}\n", "returned dict, not a ConfigDict"),
    ):
        other.write_text(text)
        with pytest.raises(UserError, match=line):
            load_config(str(other))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="not a Python file"):
        load_config(str(tmp_path / "notes.txt"))


def test_a_user_error_is_one_line_and_status_2(experiment, monkeypatch, capsys, tmp_path):
    failing(monkeypatch, UserError("image 7 is truncated: download it again"))
    assert cli.main(["train", f"--config={experiment}", f"--workdir={tmp_path}"]) == 2
    assert capsys.readouterr().err == "mrcnn: error: image 7 is truncated: download it again\n"
    assert not (tmp_path / "error.log").exists()


def test_a_store_that_does_not_answer_is_worth_another_try(experiment, monkeypatch, capsys, tmp_path):
    failing(monkeypatch, Unreachable("gs://a/b cannot be written: run the same command to go on"))
    assert cli.main(["train", f"--config={experiment}", f"--workdir={tmp_path}"]) == 75
    assert capsys.readouterr().err == "mrcnn: error: gs://a/b cannot be written: run the same command to go on\n"


def test_an_unexpected_error_leaves_its_traceback_in_the_workdir(experiment, monkeypatch, capsys, tmp_path):
    failing(monkeypatch, RuntimeError("first line\nsecond line"))
    assert cli.main(["train", f"--config={experiment}", f"--workdir={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert told == f"mrcnn: error: unexpected RuntimeError: first line (the traceback is in {tmp_path / 'error.log'})\n"
    assert "Traceback (most recent call last)" in (tmp_path / "error.log").read_text()


def test_a_full_disk_and_signals_are_one_line(experiment, monkeypatch, capsys, tmp_path):
    arguments = ["train", f"--config={experiment}", f"--workdir={tmp_path}"]
    failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    assert cli.main(arguments) == 2
    told = f"the disk is full while writing {tmp_path}: free some space and run the same command again"
    assert capsys.readouterr().err == f"mrcnn: error: {told}\n"
    failing(monkeypatch, KeyboardInterrupt())
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err == "mrcnn: interrupted: run the same command to go on\n"
    for number in (signal.SIGINT, signal.SIGTERM):
        failing(monkeypatch, Interrupted(number, "stopped at step 3"))
        assert cli.main(arguments) == 128 + number
        assert capsys.readouterr().err == "mrcnn: stopped at step 3\n"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("check", ["check", "--images=i", "--annotations=a.json"]),
        ("evaluate", ["eval", "--workdir=run"]),
        ("predict", ["predict", "a.jpg", "--checkpoint=run", "--out=out"]),
        ("score", ["score", "--gt=a.json", "--dt=b.json"]),
    ],
)
def test_ctrl_c_in_a_command_that_keeps_nothing(monkeypatch, capsys, name, arguments):
    failing(monkeypatch, KeyboardInterrupt(), name)
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err == "mrcnn: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--workdir=x"], "--config"),
        (["check"], "give --images and --annotations, or --config"),
        (["check", "--images=x"], "give --images and --annotations, or --config"),
        (["eval"], "give --workdir or --checkpoint"),
        (["eval", "--workdir=x", "--config.train.steps=3"], "changes an experiment: name it with --config=FILE"),
        (["eval", "--workdir=x", "--config=y.py", "--config.model.box.size=3"], "comes with its weights"),
        (["score", "--gt=a"], "--dt"),
        (["train", "--config=x.py", "--workdr=x"], "--workdir"),
        (["train", "--config=", "--workdir=x"], "argument --config: "),
        (["predict", "--checkpoint=x", "--out=x"], "the following arguments are required: IMAGE"),
        (["predict", "a.jpg", "--checkpoint=x", "--out=x", "--threshold=1.5"],
         "argument --threshold: 1.5 is not a number from 0 to 1"),
        (["predict", "a.jpg", "--checkpoint=x", "--out=x", "--threshold=nan"],
         "argument --threshold: nan is not a number from 0 to 1"),
        (["predict", "a.jpg", "--checkpoint=x", "--out=x", "--threshold=high"],
         "argument --threshold: high is not a number from 0 to 1"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line_and_status_2(calls, capsys, arguments, line):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.startswith("mrcnn: error: ")
    assert told.endswith("--help` tells more)\n")
    assert told.count("\n") == 1
    assert calls == {}


def test_a_reader_that_leaves_is_no_error():
    code = "import sys, types; from mrcnn_jax import cli\n" \
        "def run(*a):\n    [print('x' * 1000) for _ in range(1000)]\n" \
        "sys.modules['mrcnn_jax.commands.score'] = types.SimpleNamespace(run=run)\n" \
        "sys.exit(cli.main(['score', '--gt=a', '--dt=b']))"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_check_reads_both_sets_of_a_config_and_tells_of_a_picture_in_both(tmp_path, capsys):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(tmp_path / split / "a.png")
        boxes = [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}]
        images = [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}]
        content = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "dot"}]}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    paths = {f"{split}_{what}": f"{split}{end}" for split in ("train", "val") for what, end in
             (("images", ""), ("annotations", ".json"))}  # fmt: skip
    config = ConfigDict({"data": {"kind": "coco", "root": str(tmp_path), **paths}})
    assert check_command.run(config, None, None, tmp_path / "findings.json") == 1
    assert "warning: picture of train in val, which flatters figures" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "findings.json").read_text())) == {"train", "val"}
    (tmp_path / "val" / "a.png").write_bytes(b"")
    assert check_command.run(config, None, None, None) == 1
    with pytest.raises(UserError, match=r"config\.data\.kind='shapes' has no files"):
        check_command.run(ConfigDict({"data": {"kind": "shapes"}}), None, None, None)


def test_score_prints_json(tmp_path, capsys):
    truth = {
        "images": [{"id": 1, "width": 8, "height": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
        "categories": [{"id": 3, "name": "dot"}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    found = [{"image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.9}]
    (tmp_path / "dt.json").write_text(json.dumps(found))
    assert cli.main(["score", f"--gt={tmp_path / 'gt.json'}", f"--dt={tmp_path / 'dt.json'}"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["AP"] == pytest.approx(1.0)
    files = [f"--gt={tmp_path / 'gt.json'}", f"--dt={tmp_path / 'dt.json'}"]
    assert cli.main(["score", *files, "--metric=voc07"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == {"AP": 1, "AP50": 1, "AP75": 1}
    assert cli.main(["score", *files, "--metric=voc12", "--type=segm"]) == 2
    assert "the metric voc12 compares bbox, not segm" in capsys.readouterr().err
    assert cli.main(["score", "--gt=missing.json", "--dt=missing.json"]) == 2
    assert "missing.json" in capsys.readouterr().err
