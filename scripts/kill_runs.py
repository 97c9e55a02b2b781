"""A run over several hosts that is killed again and again ends in the same bits as one that is left alone.

    python scripts/kill_runs.py --out=runs/kills [--kills=50] [--terms=10] [--hosts=2] [--steps=1500] [--seed=0]

Two runs of `scripts/tiny_hosts.py` (Mask R-CNN on drawn shapes) on this machine: one undisturbed, and one that gets
SIGKILLs, to one of its processes or to all, and SIGTERMs, to one. A third of the kills falls at any moment from the
start on, a third into the steps, and a third into the writing of a checkpoint. After each, every process has to have
ended, no checkpoint may be unreadable, and the run is started again. OUT/kills.json has what was done and seen.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import local_hosts
from same_bits import Differ, same_arrays, same_losses

from mrcnn_jax.checkpoints.params import load_params
from mrcnn_jax.evaluation.results import write_json
from mrcnn_jax.progress import Progress

CONFIG = Path(__file__).with_name("tiny_hosts.py")
# Seconds within which all processes of a run have ended after one of them was killed or told to.
LIMIT = 60
# A checkpoint every so many steps.
SAVE_EVERY = 10


class Most(NamedTuple):
    """How long after a start a process is left alone at the most."""

    seconds: float
    steps: int


def main() -> None:
    """Do both runs, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs (%(default)s)")
    parser.add_argument("--terms", type=int, default=10, help="SIGTERMs (%(default)s)")
    parser.add_argument("--hosts", type=int, default=2, help="processes of the run (%(default)s)")
    parser.add_argument("--steps", type=int, default=1500, help="of training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is done when (%(default)s)")
    parser.add_argument("--config", default=str(CONFIG), metavar="FILE[:MODE]", help="what is trained (%(default)s)")
    options = parser.parse_args()
    if options.out.exists():
        sys.exit(f"error: {options.out} exists: choose another folder")
    alone, disturbed = options.out / "alone", options.out / "disturbed"
    began = time.monotonic()
    statuses = local_hosts.run(options.hosts, _command(alone, options), options.out / "alone_logs", 3600, _env(options))
    if any(statuses):
        sys.exit(f"error: the undisturbed run ended with {statuses}: see {options.out / 'alone_logs'}")

    random_ = random.Random(options.seed)
    events = ["kill"] * options.kills + ["term"] * options.terms
    random_.shuffle(events)
    # The run is not to end before all has been done to it.
    most = Most(seconds=min(40.0, (time.monotonic() - began) / 2), steps=max(2, options.steps // (len(events) + 1)))
    done = []
    with Progress("kill", len(events) + 1) as progress:
        for event in events:
            done.append(_disturb(event, disturbed, options, most, random_))
            _require_all_readable(disturbed)
            progress.update(len(done), json.dumps(done[-1]))
        statuses = local_hosts.run(
            options.hosts, _command(disturbed, options), options.out / "logs", 3600, _env(options)
        )
        progress.update(len(done) + 1)
    try:
        arrays, losses = same_arrays(alone, disturbed, options.steps), same_losses(alone, disturbed)
    except Differ as differ:
        sys.exit(f"error: {differ}")
    result = {
        "hosts": options.hosts, "steps": options.steps, "seed": options.seed, "events": done, "last": statuses,
        "arrays": arrays, "losses": losses,
    }  # fmt: skip
    write_json(result, options.out / "kills.json")
    kinds = ", ".join(
        f"{sum(event['what'] == kind for event in done)} {kind}" for kind in sorted({e["what"] for e in done})
    )
    print(f"{kinds}: {result['arrays']} arrays and {result['losses']} losses are the same bits")


def _command(workdir: Path, options: argparse.Namespace) -> list[str]:
    keys = {"steps": options.steps, "save_every": SAVE_EVERY, "eval_every": options.steps, "cpu_devices": 1}
    return [
        "train",
        f"--config={options.config}",
        f"--workdir={workdir}",
        *(f"--config.train.{k}={v}" for k, v in keys.items()),
    ]


def _env(options: argparse.Namespace) -> dict[str, str]:
    return local_hosts.quick(options.out / "cache")


def _disturb(event: str, workdir: Path, options: argparse.Namespace, most: Most, random_: random.Random) -> dict:
    """Starts the run, does something to it, and waits for its end."""
    before = _last_row(workdir)
    hosts = local_hosts.start(options.hosts, _command(workdir, options), options.out / "logs", _env(options))
    began = time.monotonic()
    if event == "term":
        what = "SIGTERM to one"
        _wait_for_steps(workdir, before, random_.randrange(1, most.steps), hosts)
        hit = [random_.choice(hosts)]
    else:
        when = random_.choice(["any moment", "in the steps", "in the writing of a checkpoint"])
        hit = random_.choice([hosts, [random_.choice(hosts)]])
        what = f"SIGKILL to {'all' if len(hit) > 1 else 'one'}, {when}"
        if when == "any moment":
            _wait(random_.uniform(0, most.seconds), hosts)
        else:
            _wait_for_steps(workdir, before, random_.randrange(1, most.steps), hosts)
        if when == "in the writing of a checkpoint":
            _wait_for_a_save(workdir, hosts)
            time.sleep(random_.uniform(0, 0.2))
    ended = [host.returncode for host in hosts if host.poll() is not None]
    if ended:
        sys.exit(f"error: a process ended by itself with {ended}, before it was told to: see {options.out / 'logs'}")
    after = time.monotonic() - began
    for host in hit:
        host.send_signal(signal.SIGTERM if event == "term" else signal.SIGKILL)
    told = time.monotonic()
    try:
        statuses = [host.wait(max(LIMIT - (time.monotonic() - told), 0.1)) for host in hosts]
    except subprocess.TimeoutExpired:
        sys.exit(f"error: a process still runs {LIMIT} seconds after {what}: see {options.out / 'logs'}")
    if event == "term" and set(statuses) != {143}:
        sys.exit(f"error: after a SIGTERM the processes ended with {statuses} instead of 143")
    return {
        "what": what, "after_seconds": round(after, 2), "ended_within": round(time.monotonic() - told, 2),
        "statuses": statuses, "step": _last_row(workdir),
    }  # fmt: skip


def _wait(seconds: float, hosts: list[subprocess.Popen]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and all(host.poll() is None for host in hosts):
        time.sleep(0.01)


def _wait_for_steps(workdir: Path, before: int, number: int, hosts: list[subprocess.Popen]) -> None:
    """Until the run has made so many steps since it was started, from the checkpoint at or before step `before`."""
    start = None
    while all(host.poll() is None for host in hosts):
        row = _last_row(workdir)
        # It first cuts what is later than the checkpoint.
        start = row if start is None or row < start else start
        if row >= start + number and row != before:
            return
        time.sleep(0.01)


def _wait_for_a_save(workdir: Path, hosts: list[subprocess.Popen]) -> None:
    while all(host.poll() is None for host in hosts):
        if any("tmp" in child.name for child in (workdir / "checkpoints").iterdir()):
            return
        time.sleep(0.001)


def _last_row(workdir: Path) -> int:
    file = workdir / "metrics.csv"
    rows = file.read_text().splitlines() if file.exists() else []
    return next((int(row.split(",")[0]) for row in reversed(rows) if row.split(",")[0].isdecimal()), 0)


def _steps(workdir: Path) -> list[Path]:
    folder = workdir / "checkpoints"
    return (
        sorted((c for c in folder.iterdir() if c.name.isdecimal()), key=lambda c: int(c.name))
        if folder.is_dir()
        else []
    )


def _require_all_readable(workdir: Path) -> None:
    """Ends the program unless each checkpoint can be read, with checksums that are right."""
    if aside := list(workdir.glob("checkpoints/*.unreadable")):
        sys.exit(f"error: a checkpoint could not be read: {aside}")
    for step in _steps(workdir):
        load_params(step)


if __name__ == "__main__":
    main()
