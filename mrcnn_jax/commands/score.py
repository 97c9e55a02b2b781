"""`mrcnn score`."""

import json
from pathlib import Path

from mrcnn_jax.evaluation.coco_metrics import Backend, Kind, score


def run(gt: Path, dt: Path, kind: Kind, backend: Backend = "hotcoco") -> None:
    """Print the figures of results `dt` against ground truth `gt` as JSON, for programs to read."""
    print(json.dumps(score(gt, dt, kind, backend=backend).to_dict(), indent=2))
