"""Speed and memory of this package and, where it is installed, of torchvision's Mask R-CNN; see docs/benchmarks.md."""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

import benchmark_host
import benchmark_ops
import jax
from benchmark_detector import Detector, Settings
from benchmark_report import Report, measure

from mrcnn_jax import determinism
from mrcnn_jax.models import architectures
from mrcnn_jax.planning.chips import CHIPS

PARTS = ("ops", "data", "evaluation", "compile", "train", "inference")
# The architecture that has torchvision's conventions.
SAME_MODEL = "torchvision_mask_rcnn_r50_fpn"
# Multiplications and additions a second at the peak in bfloat16; float32, which is TF32 on NVIDIA's, has half of it.
PEAK_FLOPS = {chip.gpu.name: chip.flops for chip in CHIPS.values() if chip.gpu}
PEAK_FLOPS["NVIDIA A100-SXM4-40GB"] = CHIPS["a100"].flops


def main() -> None:
    """Measures the parts that were asked for, in the order of `PARTS`."""
    # Before the first look at the devices, by which the other options have their defaults.
    deterministic = "--deterministic" in sys.argv[1:]
    if deterministic:
        determinism.require()
    options = _options()
    settings = Settings(options.model, options.size, options.batch, options.precision)
    report = Report(_header(settings) | {"deterministic": deterministic})
    for name, value in report.header.items():
        print(f"# {name}: {value}")
    start = time.perf_counter()
    networks = [part for part in ("train", "inference") if part in options.parts]
    parts = {
        "ops": lambda: benchmark_ops.ops(report, options.repeats),
        "data": lambda: benchmark_host.data(report, options.repeats),
        "evaluation": lambda: benchmark_host.evaluation(report, options.repeats, num_images=5000),
        "compile": lambda: _cold_starts(report, settings, options.compile_repeats),
        "networks": lambda: _networks(report, settings, networks, options.repeats),
    }
    chosen = {*options.parts, *(["networks"] if networks else [])}
    for name, measure_part in parts.items():
        if name in chosen:
            measure_part()
            report.note(f"{name} finished after {time.perf_counter() - start:.0f} s")
            # A run that is cut short keeps what it has measured.
            if options.json:
                report.write(options.json)


def _options() -> argparse.Namespace:
    gpu = jax.default_backend() != "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    model = "mask_rcnn_r50_fpn" if gpu else SAME_MODEL
    parser.add_argument("--model", choices=architectures.NAMED, default=model, help="architecture")
    size = (800, 1344) if gpu else (256, 320)
    parser.add_argument("--size", type=_size, default=size, help="HEIGHTxWIDTH, multiples of 32")
    parser.add_argument("--batch", type=int, default=8 if gpu else 1, help="images in a batch, on all devices together")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="bfloat16" if gpu else "float32", help="of the network"
    )
    parser.add_argument("--parts", type=_parts, default=PARTS, help="some of " + ",".join(PARTS))
    parser.add_argument(
        "--repeats", type=int, default=20 if gpu else 5, help="rounds of every figure but compilation's"
    )
    parser.add_argument(
        "--compile-repeats", type=int, default=3 if gpu else 1, help="pairs of a first and a second start"
    )
    parser.add_argument("--deterministic", action="store_true", help="as of `mrcnn train`: what it costs on a GPU")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    if height < 64 or width < 64 or height % 32 or width % 32:
        raise ValueError("a side is no multiple of 32, or under 64")
    return height, width


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if not set(parts) <= set(PARTS):
        raise ValueError("an unknown part")
    return parts


def _header(settings: Settings) -> dict[str, object]:
    device, cpu = jax.devices()[0], platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    versions = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "numpy", "grain", "hotcoco", "torch", "torchvision"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    size = f"{settings.size[0]}x{settings.size[1]}"
    return {
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "host": f"{cpu}, {os.cpu_count()} cores",
        "versions": " ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": commit or "unknown",
        "settings": f"{settings.model}, {size}, batch {settings.batch}, {settings.precision}",
    }


def _cold_starts(report: Report, settings: Settings, repeats: int) -> None:
    """New processes that compile: the first with an empty cache, the second with what the first left."""
    found: dict[str, list[dict]] = {"first": [], "second": []}
    script = Path(__file__).with_name("benchmark_detector.py")
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for runs in found.values():
                environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
                command = [sys.executable, str(script), json.dumps(asdict(settings))]
                start = time.time()
                output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
                run = json.loads(output.splitlines()[-1])
                runs.append({**run, "first_step": run["first_step"] - start})
    for which, runs in found.items():
        for name in ("train", "inference"):
            report.add("compile", f"{name}, {which} start", "s", [run[name] for run in runs])
        report.add("compile", f"whole way to the first step, {which} start", "s", [run["first_step"] for run in runs])
    every = [run for runs in found.values() for run in runs]
    for name, where in (("rss", "of the process"), ("device", "in use on a device")):
        if None not in (samples := [run[name] for run in every]):
            report.add("memory", f"peak {where}, first step of training", "MiB", samples)


def _networks(report: Report, settings: Settings, parts: list[str], repeats: int) -> None:
    """Training and detection of the chosen model and, in alternation, of torchvision's and of the same model here."""
    peer = _peer(report, settings)
    names = dict.fromkeys((settings.model, SAME_MODEL) if peer else (settings.model,))
    detectors = {}
    for name in names:
        detectors[name] = Detector(replace(settings, model=name))
        for part in parts:
            print(f"# compiling {name}: {part}", flush=True)
            detectors[name].program(part)
    for part in parts:
        runners = {**detectors, "torchvision": peer} if peer else detectors
        seconds = measure({name: getattr(runner, part) for name, runner in runners.items()}, repeats)
        report.rates(part, "images/s", settings.batch, seconds)
        if peer:
            pairs = zip(seconds["torchvision"], seconds[SAME_MODEL], strict=True)
            report.add(part, f"{SAME_MODEL} : torchvision", "times as fast", [theirs / ours for theirs, ours in pairs])
            if (memory := peer.peak_memory()) is not None:
                report.add("memory", f"{part}, torchvision's tensors at their peak", "MiB", [memory])
            rois = " and ".join(f"its {head} head {number:.0f}" for head, number in peer.rois.items())
            report.note(f"{part}: of RoIs an image torchvision gave {rois}")
        for name, detector in detectors.items():
            _cost(report, settings, part, name, detector, seconds[name])


def _cost(report: Report, settings: Settings, part: str, name: str, detector: Detector, seconds: list[float]) -> None:
    """What the compiler says of a program: its memory on a device and its arithmetic, with the share of the peak."""
    memory, device = detector.program(part).memory_analysis(), jax.devices()[0]
    if memory is not None:
        size = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        report.add("memory", f"{part}, {name}, on a device", "MiB", [(size - memory.alias_size_in_bytes) / 2**20])
    if flops := detector.flops(part):
        report.add(part, f"{name}, arithmetic", "GFLOP an image", [flops * jax.device_count() / settings.batch / 1e9])
        report.add(part, f"{name}, arithmetic on a device", "GFLOP/s", [flops / s / 1e9 for s in seconds])
        if peak := PEAK_FLOPS.get(device.device_kind, 0) * (1 if settings.precision == "bfloat16" else 0.5):
            label = f"{name}, share of the peak of {peak / 1e12:.0f} TFLOP/s"
            report.add(part, label, "%", [100 * flops / s / peak for s in seconds])


def _peer(report: Report, settings: Settings):
    """torchvision's model, or None, with a note that says why."""
    try:
        from benchmark_torchvision import Peer

        return Peer(settings)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        report.note(f"torchvision is not measured: {str(error).splitlines()[0]}")
        return None


if __name__ == "__main__":
    main()
