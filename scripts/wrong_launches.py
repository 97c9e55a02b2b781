"""Ways of starting a run over two hosts wrongly: what each host says, with which exit status, and after how long.

    python scripts/wrong_launches.py --out=runs/wrong [NAME...]

Every process has to end with status 2 and one line of the kind that its case names, within the time that hosts wait for
each other (here 10 seconds) and what starting takes. OUT/wrong_launches.json has what was seen.
"""

import argparse
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from local_hosts import free_port

from mrcnn_jax.evaluation.results import write_json

CONFIG = Path(__file__).with_name("tiny_hosts.py")
WAIT, LIMIT = 10, 90


@dataclass
class Host:
    """One process: what it is told, beside its config and workdir."""

    index: int | None = 0
    count: int | None = 2
    address: str = "127.0.0.1:{port}"
    keys: tuple[str, ...] = ()
    config: str = str(CONFIG)
    workdir: str = "run"
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Case:
    """Which processes are started, and words of the line that each of them has to end with."""

    hosts: tuple[Host, ...]
    says: str
    # What listens at the coordinator's port already: "nothing", "a program", "a web server".
    port: str = "nothing"


def _both(*keys: str) -> tuple[Host, Host]:
    return Host(0, keys=keys), Host(1, keys=keys)


# Of another second host.
RATE, DEVICES, BATCH = "optimizer.learning_rate=0.5", "train.cpu_devices=1", "train.batch_size=5"
DATA = ("data.kind=coco", "data.root={out}/data"), ("data.kind=coco", "data.root={out}/less")
OTHER_VERSION, OTHER_NUMBERS = ({"PYTHONPATH": f"{{out}}/{name}"} for name in ("other_version", "other_numbers"))

CASES = {
    "a host does not come": Case((Host(0),), "1 of 2 hosts did not come within 10 seconds (--process-id 1)"),
    "the first host does not come": Case((Host(1),), "the first host does not answer at 127.0.0.1:"),
    "two hosts have the same number": Case((Host(0, 3), Host(1, 3), Host(1, 3)), "two hosts have --process-id=1"),
    "the numbers of hosts differ": Case((Host(0, 2), Host(1, 3)), "--num-processes differs: 2 on host 0"),
    "a number that there is not": Case((Host(2),), "--process-id=2 of --num-processes=2: hosts are numbered from 0"),
    "a flag is missing": Case((Host(0, None),), "--num-processes missing: a host needs all of --coordinator"),
    "an address without a port": Case((Host(0, address="node1"),), "--coordinator=node1 is not HOST:PORT"),
    "a name that nobody knows": Case((Host(1, address="nowhere.invalid:8476"),), "does not answer at nowhere.invalid"),
    "the port is taken": Case((Host(0),), "another run or program uses it", port="a program"),
    "something else listens there": Case((Host(1),), "is not the first host of this run", port="a web server"),
    "versions differ": Case((Host(0), Host(1, env=OTHER_VERSION)), "versions differ: flax"),
    "the config file is not there": Case((Host(0), Host(1, config="gone.py")), "gone.py"),
    "configs differ": Case((Host(0), Host(1, keys=(RATE,))), "config.optimizer.learning_rate differs"),
    "the numbers of devices differ": Case((Host(0), Host(1, keys=(DEVICES,))), "computes with differs: 2 x cpu"),
    "the batch does not divide": Case(_both(BATCH), "config.train.batch_size=5 does not divide over 4 devices"),
    "the workdir is not shared": Case((Host(0), Host(1, workdir="elsewhere")), "is not the same folder on all hosts"),
    "the data differ": Case((Host(0, keys=DATA[0]), Host(1, keys=DATA[1])), "how many training images there are diff"),
    "the weights differ": Case((Host(0), Host(1, env=OTHER_NUMBERS)), "what training starts from differs"),
}


def main() -> None:
    """Run the cases, print what is said, and fail where it is not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases; by default all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    _prepare(options.out.absolute())
    found = {name: run(CASES[name], options.out.absolute()) for name in options.names or CASES}
    write_json(found, options.out / "wrong_launches.json")
    for name, hosts in found.items():
        print(name)
        for host in hosts:
            print(f"  exit {host['status']} after {host['seconds']:.1f} s: {host['line']}")
    wrong = [name for name, hosts in found.items() if not all(_as_it_should(CASES[name], host) for host in hosts)]
    if wrong:
        sys.exit(f"error: not as it should be: {', '.join(wrong)}")


def _as_it_should(case: Case, host: dict) -> bool:
    return host["status"] == 2 and case.says in host["line"] and host["lines"] == 1


def run(case: Case, out: Path) -> list[dict]:
    """What each host of a case said last on stderr, how many such lines there were, its exit status, and its time."""
    with ExitStack() as stack:
        port = free_port()
        if case.port == "a program":
            stack.enter_context(socket.create_server(("", port)))
        if case.port == "a web server":
            server = http.server.HTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        shutil.rmtree(out / "run", ignore_errors=True)
        began = time.monotonic()
        processes = [_start(host, port, out) for host in case.hosts]
        ended: list[dict] = [{} for _ in processes]
        threads = [threading.Thread(target=_follow, args=(p, began, e)) for p, e in zip(processes, ended, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return ended


def _start(host: Host, port: int, out: Path) -> subprocess.Popen:
    place = {"--coordinator": host.address, "--num-processes": host.count, "--process-id": host.index}
    place = [f"{name}={value}".replace("{port}", str(port)) for name, value in place.items() if value is not None]
    keys = [f"--config.{key}".replace("{out}", str(out)) for key in host.keys]
    paths = [host.env.get("PYTHONPATH", "").replace("{out}", str(out)), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "mrcnn_jax.cli", "train", f"--config={host.config}", f"--workdir={out / host.workdir}",
         f"--wait={WAIT}", *place, *keys],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _follow(process: subprocess.Popen, began: float, ended: dict) -> None:
    try:
        _, told = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        _, told = process.communicate()
    lines = [line for line in told.splitlines() if line.startswith("mrcnn: ")]
    ended.update(
        status=process.returncode,
        seconds=round(time.monotonic() - began, 1),
        lines=len(lines),
        line=lines[-1] if lines else told[-300:],
    )


def _prepare(out: Path) -> None:
    """Two data sets of different size, and hosts on which something is not as on others."""
    for name, count in (("data", 3), ("less", 2)):
        for split in ("train", "val"):
            _write_coco(out / name, split, count)
    # A file of this name is run when Python starts.
    for name, body in {
        "other_version": """
            import importlib.metadata as metadata
            version = metadata.version
            metadata.version = lambda name: "0.0.1" if name == "flax" else version(name)
        """,
        "other_numbers": """
            import zlib
            import hashlib
            new = hashlib.blake2b
            hashlib.blake2b = lambda data=b"", **keys: new(data + b"one bit more", **keys)
        """,
    }.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "sitecustomize.py").write_text(textwrap.dedent(body))


def _write_coco(root: Path, split: str, count: int) -> None:
    import cv2
    import numpy as np

    (root / split).mkdir(parents=True, exist_ok=True)
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [8, 8, 30, 30], "area": 900, "iscrowd": 0,
              "segmentation": [[8, 8, 38, 8, 38, 38, 8, 38]]} for i in range(1, count + 1)]  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(1, count + 1)]
    for image in images:
        cv2.imwrite(str(root / split / image["file_name"]), np.zeros((64, 64, 3), np.uint8))
    truth = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
    (root / f"{split}.json").write_text(json.dumps(truth))


if __name__ == "__main__":
    main()
