"""Writes experiments/README.md, the table of all experiments, from their files.

scripts/zoo_table             names, schedules, figures and parameters; GFLOPs are counted where they are missing
scripts/zoo_table --count     counts all GFLOPs anew, which takes minutes
scripts/zoo_table --check     says whether the README is up to date, and changes nothing
"""

import argparse
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict
from model_size import gigaflops, num_parameters

import experiments
from mrcnn_jax.files import whole_file
from mrcnn_jax.progress import Progress

ROOT = Path(experiments.__path__[0])
README = ROOT / "README.md"
# Papers in the order of their years.
FOLDERS = ("", "family", "rcnn", "fast_rcnn", "faster_rcnn", "mask_rcnn", "detectron2")
HEAD = """\
# Experiments

Made by `scripts/zoo_table` from the files: change those, not this.

A row is trained by its command with `--config.data.root=DIR --workdir=DIR` added, and with what its file asks for:
weights to start from (`--config.train.init`), files of proposals. With `:smoke` behind the file's name the same network
takes three steps on drawn images, without any data; `scripts/smoke_all` does that with all of them.

Parameters are counted without the buffers of frozen norms, as published counts are. GFLOPs are the multiplications, in
billions, of the convolutions and matrix products in the program that detects the objects of one image of the size given
with them, before it is compiled; loops count with their turns, masks and keypoints are those of 100 detections, and
reading RoIs from the maps is left out. A multiplication and its addition are one, as in torchvision's tables: on its
800 x 800 pixels the count is its published one, 134.38 for `fasterrcnn_resnet50_fpn`, 280.37 and 333.58 for the v2 of
Faster and Mask R-CNN.

A schedule is steps x images. Figures are in points; mAP is VOC2007's. Published ones are those of the set that the row
is scored on in training, unless they name another.
"""


def names() -> list[str]:
    """All experiments, as paths below experiments/ without .py, in the README's order."""
    found = [path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.glob("**/*.py")]
    found = [name for name in found if not name.endswith("__init__") and name.split("/")[0] not in ("base", "recipes")]
    return sorted(found, key=lambda name: (FOLDERS.index(name.rpartition("/")[0]), name))


def load(name: str) -> ModuleType:
    """The file of an experiment."""
    return importlib.import_module("experiments." + name.replace("/", "."))


def render(counted: Mapping[str, str]) -> str:
    """The README, with the GFLOPs of `counted` by name."""
    parts = [HEAD]
    for folder in FOLDERS:
        title = importlib.import_module(f"experiments.{folder}").__doc__ if folder else "Of no paper."
        parts.append(f"## {(title or '').strip().removesuffix('.')}\n")
        parts.append("| Experiment | What | Parameters | GFLOPs | Schedule | Published | Ours | Command |")
        parts.append("|---|---|--:|--:|--:|---|---|---|")
        rows = [name for name in names() if name.rpartition("/")[0] == folder]
        parts += [_line(name, load(name), counted[name]) for name in rows]
        parts.append("")
    return "\n".join(parts)


def _line(name: str, module: ModuleType, flops: str) -> str:
    config, title = module.get_config(), (module.__doc__ or "").splitlines()[0].removesuffix(".")
    published = f"{_figures(module.PUBLISHED)} ({module.SOURCE})" if module.PUBLISHED else f"none ({module.SOURCE})"
    ours = f"{_figures(module.OURS)} ({module.LOG})" if hasattr(module, "OURS") else "not trained yet"
    cells = (
        f"[{name.rpartition('/')[2]}]({name}.py)",
        title,
        f"{num_parameters(config.model):,}",
        flops,
        _schedule(config),
        published,
        ours,
        f"`mrcnn train --config=experiments/{name}.py`",
    )
    return f"| {' | '.join(cells)} |"


def _figures(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())


def _schedule(config: ConfigDict) -> str:
    steps = f"{config.train.steps:,} x {config.train.batch_size}"
    stages = (" four times" if config.alternating else "") + (", then SVMs" if config.svm.fit else "")
    return steps + stages


def count(name: str) -> str:
    """The GFLOPs of an experiment and the size of the image, as the README has them."""
    config = load(name).get_config()
    height, width = config.data.buckets[0]
    num_proposals = config.data.num_proposals[1] if config.model.rpn is None else 0
    regions = f", {num_proposals:,} regions" if num_proposals else ""
    return f"{gigaflops(config.model, height, width, num_proposals):,.1f} at {height} x {width}{regions}"


def counted(text: str) -> dict[str, str]:
    """The GFLOPs that a README has, by name of the experiment."""
    return dict(re.findall(r"^\| \[[^]]*\]\(([^)]*)\.py\) \|[^|]*\|[^|]*\| ([^|]*) \|", text, re.MULTILINE))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", action="store_true", help="count all GFLOPs anew")
    parser.add_argument("--check", action="store_true", help="say whether the README is up to date, change nothing")
    args = parser.parse_args(arguments)
    text = README.read_text(encoding="utf-8") if README.exists() else ""
    known = {} if args.count else counted(text)
    missing = [name for name in names() if name not in known]
    if args.check:
        if missing or render(known) != text:
            sys.exit("experiments/README.md is out of date: run scripts/zoo_table")
        return
    with Progress("count", len(missing)) as progress:
        for done, name in enumerate(missing, start=1):
            known[name] = count(name)
            progress.update(done, f"{name} {known[name]}")
    with whole_file(README) as partial:
        partial.write_text(render(known), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
