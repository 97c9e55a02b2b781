"""`mrcnn check`: what is wrong with a data set, before a run finds out."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from mrcnn_jax.data.check import check
from mrcnn_jax.data.sources import coco_paths
from mrcnn_jax.errors import UserError


def run(config: ConfigDict | None, images: Path | None, annotations: Path | None, json_path: Path | None) -> int:
    """Read one data set, or both of a config's, and print the findings. Returns 1 if something would stop a run."""
    if images is not None and annotations is not None:
        parts = {annotations.name: (images, annotations)}
    elif config is not None:
        if config.data.kind != "coco":
            raise UserError(
                f"config.data.kind='{config.data.kind}' has no files to check: 'coco' has a folder and a JSON"
            )
        parts = {split: coco_paths(config, split) for split in ("train", "val")}
    else:
        raise UserError("nothing to check: give --images and --annotations, or --config")
    results = {}
    for name, (folder, file) in parts.items():
        results[name] = check(folder, file)
        print("\n".join([f"{name}: {file}", *results[name].lines()]))
    if len(results) == 2 and (shared := results["train"].shared_pictures(results["val"])):
        print(
            f"warning: {len(shared)} pictures are in train and in val, which flatters figures: {', '.join(shared[:5])}"
        )
    if json_path is not None:
        findings = {name: result.to_json() for name, result in results.items()}
        json_path.write_text(json.dumps(findings, indent=2) + "\n", encoding="utf-8")
    return 1 if any(result.errors for result in results.values()) else 0
