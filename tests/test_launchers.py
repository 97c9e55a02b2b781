"""The launchers, where `srun`, `scontrol`, `gcloud` and the run itself are stand-ins that note how they are called."""

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
import yaml

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes a program of a name, first in PATH; what it is called with goes to calls.txt."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.txt"))

    def make(name: str, body: str = "") -> Path:
        program = folder / name
        program.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>"$CALLS"\n{body}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return program

    return make


def calls(tmp_path: Path) -> list[str]:
    file = tmp_path / "calls.txt"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(("status", "again"), [(0, False), (2, False), (75, True), (143, True), (137, True)])
def test_slurm_puts_an_interrupted_job_back_into_the_queue(stand_in, tmp_path, monkeypatch, status, again):
    stand_in("srun", f"exit {status}")
    stand_in("scontrol")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    command = ["bash", SCRIPTS / "launch_slurm.sbatch", "--config=experiments/x.py", "--workdir=a folder"]
    assert subprocess.run(command, check=False).returncode == status
    run = "srun --kill-on-bad-exit=1 --label .venv/bin/mrcnn train --config=experiments/x.py --workdir=a folder"
    assert calls(tmp_path) == [run, *(["scontrol requeue 17"] if again else [])]


def test_slurm_passes_a_pre_emption_on_and_waits_for_the_end(stand_in, tmp_path, monkeypatch):
    stand_in("srun", 'trap "sleep 0.3; echo saved >>$CALLS; exit 143" TERM\nfor _ in {1..200}; do sleep 0.05; done')
    stand_in("scontrol")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    job = subprocess.Popen(["bash", SCRIPTS / "launch_slurm.sbatch"])
    until = time.monotonic() + 10
    while not calls(tmp_path):
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    assert job.wait(10) == 143
    assert calls(tmp_path)[1:] == ["saved", "scontrol requeue 17"]


def test_again_starts_once_more_until_it_is_done_or_hopeless(stand_in, tmp_path):
    stand_in("sleep")
    program = stand_in(
        "run", 'n=$(grep -c "^run" "$CALLS"); statuses=(75 143 137 134 $1); exit ${statuses[$((n - 1))]}'
    )
    for last in (0, 2):
        (tmp_path / "calls.txt").unlink(missing_ok=True)
        done = subprocess.run(["bash", SCRIPTS / "again", tmp_path / "stop", program, str(last)], check=False)
        assert done.returncode == last
        assert sum(call.startswith("run") for call in calls(tmp_path)) == 5
    (tmp_path / "calls.txt").unlink()
    (tmp_path / "stop").touch()
    assert subprocess.run(["bash", SCRIPTS / "again", tmp_path / "stop", program, "0"], check=False).returncode == 75


def test_tpu_vm_copies_this_commit_and_starts_once_on_all_workers(stand_in, tmp_path):
    stand_in("gcloud")
    launch = ["bash", SCRIPTS / "launch_tpu_vm", "slice", "us-east5-a"]
    subprocess.run([*launch, "train", "--config=x.py", "--workdir=/shared/a b"], check=True)
    copied, started = calls(tmp_path)[0], "\n".join(calls(tmp_path)[1:])
    assert copied.startswith("gcloud compute tpus tpu-vm scp ")
    assert copied.endswith("slice:mrcnn.tar.gz --zone=us-east5-a --worker=all")
    assert started.startswith("gcloud compute tpus tpu-vm ssh slice --zone=us-east5-a --worker=all --command=")
    assert "already running" in started
    assert "bash scripts/again ~/mrcnn.stop .venv/bin/mrcnn train --config=x.py --workdir=/shared/a\\ b" in started
    for command in ("status", "logs", "stop"):
        subprocess.run([*launch, command], check=True)
    assert subprocess.run([*launch, "fly"], check=False).returncode == 2
    assert subprocess.run(launch[:3], check=False).returncode == 2


def test_gke_fails_for_what_a_person_has_to_mend_and_begins_again_otherwise():
    job = yaml.safe_load((SCRIPTS / "launch_gke.yaml").read_text().replace("<", "_").replace(">", "_"))
    assert job["kind"] == "JobSet"
    assert job["spec"]["failurePolicy"]["maxRestarts"] > 0
    slice_ = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert slice_["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]
    (container,) = slice_["template"]["spec"]["containers"]
    assert container["command"][:2] == ["mrcnn", "train"]
    assert slice_["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
