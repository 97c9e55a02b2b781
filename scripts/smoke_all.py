"""Runs the smoke mode of every experiment: does each network train, save and detect at all?

    scripts/smoke_all [NAME ...] [--out=DIR] [--jobs=N]

A name is a path below experiments/ without .py, such as mask_rcnn/table2b_softmax; without any, all are run. What has
passed in DIR is not run again. DIR/NAME.log is what a run printed, DIR/results.json what came of all of them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from zoo_table import names

from mrcnn_jax.errors import UserError
from mrcnn_jax.files import whole_file
from mrcnn_jax.progress import Progress


def run(name: str, out: Path) -> dict:
    """Whether the smoke run of an experiment ended well, its seconds, and the last line that it printed."""
    log, workdir, start = out / f"{name}.log", out / name, time.perf_counter()
    shutil.rmtree(workdir, ignore_errors=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mrcnn_jax.cli", "train", f"--config=experiments/{name}.py:smoke"]
    # Compiling takes the time, and much less of it without LLVM's optimisations.
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"}
    with log.open("wb") as file:
        code = subprocess.run(
            [*command, f"--workdir={workdir}"], stdout=file, stderr=file, env=os.environ | flags, check=False
        ).returncode
    # A large network's checkpoint takes gigabytes.
    shutil.rmtree(workdir, ignore_errors=True)
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return {"passed": code == 0, "seconds": round(time.perf_counter() - start), "last": lines[-1] if lines else ""}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments to run; all of them if none is named")
    parser.add_argument("--out", type=Path, default=Path("runs/smoke"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (%(default)s)")
    args = parser.parse_args(arguments)
    known = names()
    if unknown := [name for name in args.names if name not in known]:
        raise UserError(f"there is no experiment {unknown[0]}: choose among {', '.join(known)}")
    wanted, file = args.names or known, args.out / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    todo = [name for name in wanted if not results.get(name, {}).get("passed")]
    with Progress("smoke", len(todo)) as progress, ThreadPoolExecutor(args.jobs) as pool:
        running = {pool.submit(run, name, args.out): name for name in todo}
        for done, future in enumerate(as_completed(running), start=1):
            name = running[future]
            results[name] = future.result()
            with whole_file(file) as partial:
                partial.write_text(json.dumps(results, indent=1), encoding="utf-8")
            progress.say(_line(name, results[name]))
            progress.update(done)
    failed = [name for name in wanted if not results[name]["passed"]]
    print("\n".join(["", *(_line(name, results[name]) for name in wanted)]))
    print(f"{len(wanted) - len(failed)} of {len(wanted)} passed")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see {args.out}/NAME.log")


def _line(name: str, result: dict) -> str:
    told = "passed" if result["passed"] else "FAILED"
    return f"{name:<50} {told} {result['seconds']:>5} s  {result['last'][:120]}"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
