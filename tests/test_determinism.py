"""`--deterministic` and `scripts/repeatable`: flags where they are known, and a comparison that can fail."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from mrcnn_jax import cli, determinism
from mrcnn_jax.config_files import load_config
from mrcnn_jax.errors import UserError
from mrcnn_jax.hosts import together
from mrcnn_jax.train import train

SCRIPTS = Path(__file__).parent.parent / "scripts"
FLAG = "--xla_gpu_deterministic_ops=true"


@pytest.fixture
def repeatable(monkeypatch):
    """The script, which trains in this process."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import repeatable

    def in_this_process(workdir, config, steps, deterministic, keys):
        overrides = [key.removeprefix("--config.") for key in keys]
        seed = [f"seed={int(workdir.name == 'second')}"] if "other_seed" in str(workdir) else []
        loaded = load_config(config, [f"train.steps={steps}", f"train.eval_every={steps}", *overrides, *seed])
        train(loaded, workdir, log=lambda line: None)

    monkeypatch.setattr(repeatable, "train", in_this_process)
    return repeatable


@pytest.mark.parametrize("plugin", ["xla_cuda13", "xla_cuda12", "xla_rocm7"])
def test_the_flag_joins_others(monkeypatch, tmp_path, plugin):
    (tmp_path / "jax_plugins" / plugin).mkdir(parents=True)
    (tmp_path / "jax_plugins" / plugin / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/dump")
    assert determinism.require()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=/tmp/dump {FLAG}"
    monkeypatch.delenv("XLA_FLAGS")
    assert determinism.require()
    assert os.environ["XLA_FLAGS"] == FLAG


def test_without_a_plugin_for_gpus_nothing_changes(monkeypatch):
    monkeypatch.setattr(determinism, "_plugins", lambda: ["xla_tpu"])
    before = os.environ.get("XLA_FLAGS")
    assert not determinism.require()
    assert os.environ.get("XLA_FLAGS") == before


@pytest.mark.parametrize("command", [["train", "--workdir=runs/x"], ["eval", "--checkpoint=gone"]])
def test_the_command_line_says_that_it_changes_nothing(capsys, monkeypatch, command):
    monkeypatch.setattr(determinism, "_plugins", lambda: [])
    assert cli.main([*command, "--config=gone.py", "--deterministic"]) == 2
    assert "--deterministic changes nothing here" in capsys.readouterr().out


def test_several_hosts_agree_about_it(capsys, monkeypatch):
    def differs(values, remedy):
        raise UserError(f"{values}: {remedy}")

    monkeypatch.setattr(determinism, "_plugins", lambda: [])
    monkeypatch.setattr("mrcnn_jax.distributed.joined", lambda place, wait: nullcontext())
    monkeypatch.setattr(together, "same", differs)
    hosts = ["--coordinator=127.0.0.1:1", "--num-processes=2", "--process-id=0"]
    for flags, value in ((["--deterministic"], True), ([], False)):
        assert cli.main(["train", "--config=gone.py", "--workdir=runs/x", *hosts, *flags]) == 2
        assert f"{{'--deterministic': {value}}}: give it to all hosts or to none" in capsys.readouterr().err


def test_every_jaxlib_knows_the_flag():
    """One that does not would end the process; with a plugin for GPUs a run may still be on the CPU."""
    program = "import jax; jax.config.update('jax_platforms', 'cpu'); print(jax.jit(lambda x: x + 1)(1))"
    known, unknown = (
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "XLA_FLAGS": flag}, capture_output=True, text=True
        )
        for flag in (FLAG, "--xla_gpu_no_such_flag=true")
    )
    assert known.stdout == "2\n", known.stderr
    assert unknown.returncode != 0


def test_two_runs_are_compared_bit_for_bit(repeatable, tmp_path, capsys):
    from same_bits import Differ, same_arrays

    arguments = [f"--config={SCRIPTS / 'tiny_hosts.py'}:rpn", "--steps=2"]
    assert repeatable.main([f"--out={tmp_path / 'same_seed'}", *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("the same bits: 2 losses, ")
    assert repeatable.main([f"--out={tmp_path / 'other_seed'}", *arguments]) == 1
    assert "not the same bits: losses differ, first at step 1" in capsys.readouterr().out
    with pytest.raises(Differ, match=r"\d+ of \d+ arrays differ"):
        same_arrays(tmp_path / "same_seed" / "first", tmp_path / "other_seed" / "second", 2)


def test_mistakes_are_one_line(repeatable, tmp_path, capsys):
    with pytest.raises(SystemExit, match="exists: choose another folder"):
        repeatable.main([f"--out={tmp_path}"])
    with pytest.raises(SystemExit):
        repeatable.main([f"--out={tmp_path / 'new'}", "--stepps=3"])
    assert "--stepps=3 is not known" in capsys.readouterr().err
