"""Mask R-CNN's ablations (He et al., 2017, tables 2b to 2e) on drawn shapes, several seeds each, as a table.

    python scripts/ablations.py --out=runs/ablations [--steps=700] [--seeds 0 1 2] [--jobs=1]

Every run is `experiments/shapes.py` with other keys, in a folder of its own; a run that is done is not repeated. The
table is OUT/ablations.md and the figures OUT/ablations.json.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from mrcnn_jax.evaluation.results import write_json
from mrcnn_jax.progress import Progress

# What each differs in from the first, whose masks are one a class as in the paper.
SPECIFIC = ["--config.model.mask.class_agnostic=False"]
VARIANTS = {
    "RoIAlign, sigmoid, FCN, a mask a class": SPECIFIC,
    "RoIPool": [*SPECIFIC, "--config.model.roi.pooling=pool"],
    "RoIWarp": [*SPECIFIC, "--config.model.roi.pooling=warp"],
    "softmax masks": [*SPECIFIC, "--config.model.mask.softmax=True"],
    "masks by MLP": [*SPECIFIC, "--config.model.mask.fc_dims=(256,256)"],
    "class-agnostic masks": [],
}
# Differences of mask AP to the row that the first stands for, in points, on COCO minival: ResNet-50-C4, but
# ResNet-50-FPN for the MLP (tables 2b, 2c, 2e, section 4.2).
PAPER = {"RoIPool": -3.4, "RoIWarp": -3.2, "softmax masks": -5.5, "masks by MLP": -2.1, "class-agnostic masks": -0.6}


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=700, help="of training (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    options = parser.parse_args()
    runs = [(name, seed) for seed in options.seeds for name in VARIANTS]
    with Progress("ablations", len(runs)) as progress, ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(_run, name, seed, options.steps, options.out): (name, seed) for name, seed in runs}
        for done, future in enumerate(as_completed(running), start=1):
            progress.update(done, " ".join(map(str, running[future])))
        found = {running[future]: future.result() for future in running}
    _write({name: [found[name, seed] for seed in options.seeds] for name in VARIANTS}, options)


def _run(name: str, seed: int, steps: int, out: Path) -> dict:
    """AP of boxes and masks, in points, of one run."""
    workdir = out / f"{name.replace(' ', '_').replace(',', '')}_{seed}_{steps}"
    result = workdir / "result.json"
    if not result.exists():
        command = [
            sys.executable, "-m", "mrcnn_jax.cli", "train", "--config=experiments/shapes.py", f"--workdir={workdir}",
            f"--config.seed={seed}", f"--config.train.steps={steps}", f"--config.train.eval_every={steps}",
            *VARIANTS[name],
        ]  # fmt: skip
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / "log.txt").open("a") as log:
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        if code:
            sys.exit(f"{' '.join(command)} ended with {code}: see {workdir / 'log.txt'}, and run this again")
        metrics = json.loads((workdir / "metrics.json").read_text())
        write_json(
            {kind: 100 * metrics[key]["figures"]["AP"] for kind, key in (("box", "bbox"), ("mask", "segm"))}, result
        )
    return json.loads(result.read_text())


def _write(figures: dict[str, list[dict]], options: argparse.Namespace) -> None:
    rows = [
        "| | mask AP | difference | in the paper | box AP |",
        "|---|---|---|---|---|",
    ]
    first = np.array([run["mask"] for run in next(iter(figures.values()))])
    for name, runs in figures.items():
        masks, boxes = (np.array([run[kind] for run in runs]) for kind in ("mask", "box"))
        # Seed by seed: the same images and the same order.
        gap = _spread(masks - first) if name in PAPER else ""
        paper = f"{PAPER[name]:+.1f}" if name in PAPER else ""
        rows.append(f"| {name} | {_spread(masks)} | {gap} | {paper} | {_spread(boxes)} |")
    note = (
        f"{options.steps} steps of 8 images, seeds {', '.join(map(str, options.seeds))}, 400 validation images; mean ± "
        "standard deviation, in points."
    )
    (options.out / "ablations.md").write_text("\n".join([note, "", *rows, ""]))
    write_json({"steps": options.steps, "seeds": options.seeds, "figures": figures}, options.out / "ablations.json")


def _spread(values: np.ndarray) -> str:
    deviation = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{deviation}"


if __name__ == "__main__":
    main()
