"""Two runs of the same config and seed, each in a process of its own that compiles anew, compared bit for bit.

    scripts/repeatable --out=DIR [--config=FILE[:MODE]] [--steps=20] [--deterministic] [--config.KEY=VALUE...]

Every loss in metrics.csv and every array of the last checkpoint is compared, parameters and optimiser. The exit status
is 0 where all are the same, 1 where some are not.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from same_bits import Differ, same_arrays, same_losses

CONFIG = Path(__file__).with_name("tiny_hosts.py")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do both runs, compare them and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is not there yet")
    parser.add_argument("--config", default=str(CONFIG), metavar="FILE[:MODE]", help="an experiment (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of training (%(default)s)")
    parser.add_argument("--deterministic", action="store_true", help="as of `mrcnn train`")
    options, keys = parser.parse_known_args(arguments)
    if unknown := [key for key in keys if not key.startswith("--config.")]:
        parser.error(f"{unknown[0]} is not known")
    if options.out.exists():
        sys.exit(f"error: {options.out} exists: choose another folder")
    workdirs = [options.out / name for name in ("first", "second")]
    for workdir in workdirs:
        print(f"training {options.steps} steps into {workdir}", flush=True)
        train(workdir, options.config, options.steps, options.deterministic, keys)
    try:
        losses, arrays = same_losses(*workdirs), same_arrays(*workdirs, options.steps)
    except Differ as differ:
        print(f"not the same bits: {differ}")
        return 1
    print(f"the same bits: {losses} losses, {arrays} arrays")
    return 0


def train(workdir: Path, config: str, steps: int, deterministic: bool, keys: Sequence[str]) -> None:
    """A run in a new process. Ends the program where it fails, whose output is in a file beside the workdir."""
    command = [
        sys.executable, "-m", "mrcnn_jax.cli", "train", f"--config={config}", f"--workdir={workdir}",
        *(["--deterministic"] if deterministic else []), f"--config.train.steps={steps}", "--config.train.log_every=1",
        f"--config.train.eval_every={steps}", *keys,
    ]  # fmt: skip
    # Compiling is part of what has to repeat: a program that is kept from the first run would hide that it does not.
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    workdir.parent.mkdir(parents=True, exist_ok=True)
    log = workdir.with_suffix(".log")
    with log.open("w") as file:
        status = subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        sys.exit(f"error: the run ended with status {status}: see {log}")


if __name__ == "__main__":
    sys.exit(main())
