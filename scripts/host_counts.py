"""Any number of hosts does the same: one, two and four processes of this machine, and runs that go on with another.

    python scripts/host_counts.py --out=runs/host_counts [--steps=20]

First a run of `scripts/tiny_hosts.py` (Mask R-CNN on drawn shapes, four devices in all) by one, two and four hosts:
how far parameters and losses are from one host's at the most, whether metrics.json is the same, and whether `mrcnn
eval` by as many hosts says the same of one checkpoint, to the last digit of each prediction. Then an RPN for two epochs
of 100 images: a run by some hosts gets a SIGTERM within an epoch, and others go on; each image of an epoch has to be
seen once. OUT/host_counts.json has it all.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import local_hosts
import numpy as np
from same_bits import losses

from mrcnn_jax.checkpoints.params import load_params
from mrcnn_jax.evaluation.results import write_json

CONFIG = Path(__file__).with_name("tiny_hosts.py")
COUNTS, DEVICES = (1, 2, 4), 4
# From so many hosts to so many.
CHANGES = ((4, 1), (4, 2), (1, 4), (2, 4))
# Two epochs; the first part of a run ends in the first one, or soon after.
IMAGES, BATCH, EPOCHS, SAVED = 100, 4, 2, 10
# What an evaluation writes.
EVALUATED = ("metrics.json", "predictions_bbox.json", "predictions_segm.json")
LIMIT = 1800


def main() -> None:
    """Run all, print what was found, and fail where it is not the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=20, help="of the first comparison (%(default)s)")
    parser.add_argument("--evaluate", type=Path, metavar="WORKDIR", help="a run to evaluate, not the first one")
    options = parser.parse_args()
    if options.out.exists():
        sys.exit(f"error: {options.out} exists: choose another folder")
    result = {
        "steps": options.steps,
        "hosts": _by_all(options.out, options.steps, options.evaluate),
        "changes": _changes(options.out),
    }
    write_json(result, options.out / "host_counts.json")
    print(json.dumps(result, indent=2))
    same = all(
        run["parameters"] <= 1e-5 and run["losses"] <= 1e-5 and run["same_metrics"] and run["same_evaluation"]
        for run in result["hosts"]
    )
    if not same or any(change["images"] != [IMAGES] * EPOCHS for change in result["changes"]):
        sys.exit("error: not the same")


def _by_all(out: Path, steps: int, evaluated: Path | None) -> list[dict]:
    """What the runs by two and four hosts differ in from that by one."""
    found = out / "found"
    keys = {"train.steps": steps, "train.eval_every": steps, "train.save_every": steps}
    one, evaluations = out / "1", []
    for count in COUNTS:
        _run(out, count, "train", [f"--config={CONFIG}", f"--workdir={out / str(count)}"], keys)
        if count == 1:
            shutil.copytree(evaluated or one, found)
        _run(out, count, "eval", [f"--workdir={found}"], {})
        evaluations.append([(found / name).read_bytes() for name in EVALUATED])
    rows = []
    for count, evaluation in zip(COUNTS[1:], evaluations[1:], strict=True):
        other = out / str(count)
        pairs = zip(jax.tree.leaves(load_params(one)[0]), jax.tree.leaves(load_params(other)[0]), strict=True)
        by_step = zip(*(losses(run / "metrics.csv").values() for run in (one, other)), strict=True)
        rows.append({
            "hosts": count,
            "parameters": max(float(np.abs(a - b).max()) for a, b in pairs),
            "losses": max(abs(float(a) - float(b)) / float(a) for a, b in by_step),
            "same_metrics": (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes(),
            "same_evaluation": evaluation == evaluations[0],
            "evaluated": {kind: part["figures"]["AP"] for kind, part in json.loads(evaluation[0]).items()},
        })  # fmt: skip
    return rows


def _changes(out: Path) -> list[dict]:
    """How many images of each epoch are seen, where other hosts go on with a run that was stopped within one."""
    steps, found = EPOCHS * IMAGES // BATCH, []
    keys = {
        "train.steps": steps, "train.eval_every": steps, "train.save_every": SAVED, "train.log_images": True,
        "data.num_train": IMAGES,
    }  # fmt: skip
    stopped: dict[int, tuple[Path, int]] = {}
    for before, after in CHANGES:
        if before not in stopped:
            stopped[before] = _stopped(out, before, keys)
        workdir, step = out / f"{before}_to_{after}", stopped[before][1]
        shutil.copytree(stopped[before][0], workdir)
        _run(out, after, "train", [f"--config={CONFIG}:rpn", f"--workdir={workdir}"], keys)
        found.append({"hosts": [before, after], "stopped": step, "images": _images(workdir)})
    return found


def _stopped(out: Path, count: int, keys: dict) -> tuple[Path, int]:
    """A run by `count` hosts that one SIGTERM has ended within an epoch, and after how many steps."""
    workdir = out / f"{count}_stopped"
    arguments = [f"--config={CONFIG}:rpn", f"--workdir={workdir}"]
    hosts = local_hosts.start(**_hosts(out, count, "train", arguments, keys))
    until = time.monotonic() + LIMIT
    while not (workdir / "checkpoints" / str(SAVED)).exists():
        if time.monotonic() > until or any(host.poll() is not None for host in hosts):
            sys.exit(f"error: the run by {count} hosts made no checkpoint: see {out / 'logs'}")
        time.sleep(0.01)
    hosts[-1].send_signal(signal.SIGTERM)
    statuses = [host.wait(120) for host in hosts]
    step = max(int(folder.name) for folder in (workdir / "checkpoints").iterdir())
    if set(statuses) != {143} or step % (IMAGES // BATCH) == 0:
        sys.exit(f"error: the run by {count} hosts ended with {statuses} after step {step}: try again")
    return workdir, step


def _images(workdir: Path) -> list[int]:
    """How many different images each epoch had; a negative number where one was seen twice."""
    per_epoch = [Counter() for _ in range(EPOCHS)]
    for file in (workdir / "images").iterdir():
        for line in file.read_text().splitlines():
            step, *ids = map(int, line.split(","))
            per_epoch[(step - 1) // (IMAGES // BATCH)].update(ids)
    return [len(seen) if seen.total() == len(seen) else -len(seen) for seen in per_epoch]


def _hosts(out: Path, count: int, command: str, arguments: list[str], keys: dict) -> dict[str, Any]:
    """So many hosts of a command, as `local_hosts` takes them."""
    # What is evaluated brings its own config, and devices by the environment.
    keys = keys | {"train.cpu_devices": DEVICES // count} if command == "train" else keys
    env = local_hosts.quick(out / "cache") | {"JAX_NUM_CPU_DEVICES": str(DEVICES // count)}
    overrides = [f"--config.{key}={value}" for key, value in keys.items()]
    return {"count": count, "arguments": [command, *arguments, *overrides], "logs": out / "logs", "env": env}


def _run(out: Path, count: int, command: str, arguments: list[str], keys: dict) -> None:
    statuses = local_hosts.run(**_hosts(out, count, command, arguments, keys), seconds=LIMIT)
    if any(statuses):
        sys.exit(f"error: `mrcnn {command}` by {count} hosts ended with {statuses}: see {out / 'logs'}")


if __name__ == "__main__":
    main()
