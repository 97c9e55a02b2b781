"""`mrcnn check`: what is wrong with a data set, before a run finds out."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from mrcnn_jax.data import coco
from mrcnn_jax.data.check import check
from mrcnn_jax.errors import UserError


def run(config: ConfigDict | None, images: Path | None, annotations: Path | None, json_path: Path | None) -> int:
    """Read one data set, or both of a config's, and print the findings. Returns 1 if something would stop a run."""
    if images is not None and annotations is not None:
        parts = {annotations.name: (images, annotations)}
    elif config is not None:
        parts = {split: _paths(config, split) for split in ("train", "val")}
    else:
        raise UserError("nothing to check: give --images and --annotations, or --config")
    findings = {}
    errors = 0
    for name, (folder, file) in parts.items():
        result = check(folder, file)
        print("\n".join([f"{name}: {file}", *result.lines()]))
        findings[name] = result.to_json()
        errors += len(result.errors)
    if json_path is not None:
        json_path.write_text(json.dumps(findings, indent=2) + "\n", encoding="utf-8")
    return 1 if errors else 0


def _paths(config: ConfigDict, split: str) -> tuple[Path, Path]:
    data = config.data
    if data.kind != "coco":
        raise UserError(f"config.data.kind='{data.kind}' has no files to check: only 'coco' has a folder and a JSON")
    if not data.root:
        raise UserError("config.data.root is empty: pass --config.data.root=DIR")
    root = Path(data.root).expanduser()
    images, annotations = data[f"{split}_images"], data[f"{split}_annotations"]
    if not annotations:
        images, annotations = coco.find(root, split)
    return root / images, root / annotations
