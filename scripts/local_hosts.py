"""Several hosts on one machine: the processes of a run, as a scheduler would start them on machines of their own.

    python scripts/local_hosts.py 2 train --config=experiments/shapes.py:smoke --workdir=runs/two

Their output goes to this terminal. Of each, the exit status is told; this script's own is the largest.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

Env = Mapping[str, str] | None


def quick_flags() -> str:
    """This process's XLA_FLAGS, and those with which compiling takes a quarter of the time."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    if version("jax").startswith("0.10."):
        # XLA's older way to fuse operations takes half the time; later versions know no such flag.
        flags += " --xla_cpu_use_fusion_emitters=false"
    return flags


def quick(cache: Path) -> dict[str, str]:
    """This process's environment, but that little time goes into compiling, which is most of a short run's."""
    return {"JAX_COMPILATION_CACHE_DIR": str(cache), **os.environ, "XLA_FLAGS": quick_flags()}


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def one(
    index: int, count: int, port: int, arguments: Sequence[str], logs: Path | None = None, env: Env = None
) -> subprocess.Popen:
    """Host `index` of `count`; with `logs`, what it says goes to the end of LOGS/host_I.log."""
    place = [f"--coordinator=127.0.0.1:{port}", f"--num-processes={count}", f"--process-id={index}", "--wait=60"]
    command = [sys.executable, "-m", "mrcnn_jax.cli", *arguments, *(place if count > 1 else [])]
    if logs is None:
        return subprocess.Popen(command, env=env)
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"host_{index}.log").open("a") as log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def start(count: int, arguments: Sequence[str], logs: Path | None = None, env: Env = None) -> list[subprocess.Popen]:
    """All hosts of `mrcnn ARGUMENTS`."""
    port = free_port()
    return [one(index, count, port, arguments, logs, env) for index in range(count)]


def run(
    count: int, arguments: Sequence[str], logs: Path | None = None, seconds: float = 600, env: Env = None
) -> list[int]:
    """The exit statuses, in the order of the hosts. Raises `subprocess.TimeoutExpired` after so many seconds."""
    processes = start(count, arguments, logs, env)
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    statuses = run(int(sys.argv[1]), sys.argv[2:], seconds=7 * 24 * 3600)
    print("exit statuses:", *statuses)
    sys.exit(max(statuses, key=abs))
