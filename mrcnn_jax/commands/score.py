"""`mrcnn score`."""

import json
from pathlib import Path

from mrcnn_jax.evaluation.coco_metrics import Backend, Kind
from mrcnn_jax.evaluation.metrics import Metric, score


def run(gt: Path, dt: Path, kind: Kind, backend: Backend = "hotcoco", metric: Metric = "coco") -> None:
    """Print the figures of results `dt` against ground truth `gt` as JSON, for programs to read."""
    print(json.dumps(score(metric, gt, dt, kind, backend=backend).to_dict(), indent=2))
