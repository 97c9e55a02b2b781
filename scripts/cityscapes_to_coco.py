"""Writes Cityscapes' instances as COCO JSON, so that no run has to read its images of ids again.

    python scripts/cityscapes_to_coco.py ROOT [--split train val]

ROOT is the folder into which leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip were unpacked. The files are
ROOT/annotations/instances_train.json and instances_val.json, where `--config.data.root=ROOT` finds them.
"""

import argparse
import sys
from pathlib import Path

from mrcnn_jax.data import cityscapes
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.results import write_json


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--split", nargs="+", default=["train", "val"])
    args = parser.parse_args(arguments)
    for split in args.split:
        dataset, report = cityscapes.load(args.root, split)
        path = args.root / "annotations" / f"instances_{split}.json"
        write_json(cityscapes.to_coco(dataset), path)
        print("\n".join([*report.lines(), f"{path}: {len(dataset.records):,} images"]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
