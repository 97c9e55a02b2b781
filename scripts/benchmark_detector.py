"""This package's programs for training and detection, compiled for one shape; run as a script, a cold start of them."""

import json
import resource
import sys
import time
from dataclasses import dataclass

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import base
from mrcnn_jax import distributed
from mrcnn_jax.checkpoints.initial import initial_variables
from mrcnn_jax.models import architectures, zoo
from mrcnn_jax.models.build import build
from mrcnn_jax.optim import optimizer
from mrcnn_jax.train_step import init_state, make_train_step, state_shardings
from mrcnn_jax.types import Batch, GroundTruth

# Objects in every image. Their sizes run from a tenth to six tenths of the shorter side, evenly in the logarithm.
NUM_OBJECTS = 16


@dataclass(frozen=True)
class Settings:
    """What is run: a named architecture on `batch` images of `size` (height, width) in a precision."""

    model: str
    size: tuple[int, int]
    batch: int
    precision: str


class Detector:
    """Both programs, ahead of time compiled, with what they work on, in the memory of all devices."""

    def __init__(self, settings: Settings):
        self.config = experiment(settings)
        mesh = distributed.make_mesh()
        distributed.check_batch_size(settings.batch, mesh)
        model = build(self.config.model, distributed.AXIS)
        variables, _ = initial_variables(model, self.config)
        _silence_branches(variables)
        tx, _ = optimizer(self.config, variables["params"])
        self.variables = distributed.replicate(variables, mesh)
        state = init_state(variables, tx, ema=False)
        shardings = state_shardings(state, mesh, shard_optimizer=False)
        self.state = distributed.place(state, shardings)
        self.batch = distributed.shard(synthetic_batch(settings), mesh)
        self._train = distributed.compile_step(make_train_step(model, tx, seed=0, mesh=mesh), mesh, shardings)
        self._detect = distributed.data_parallel(
            lambda variables, batch: model.apply(variables, batch, method="detect"), mesh
        )
        self._lowered: dict[str, jax.stages.Lowered] = {}
        self._programs: dict[str, jax.stages.Compiled] = {}

    def program(self, part: str) -> jax.stages.Compiled:
        """The program of 'train' or 'inference', compiled when first asked for."""
        if part not in self._programs:
            jitted, state = (self._train, self.state) if part == "train" else (self._detect, self.variables)
            self._lowered[part] = jitted.lower(state, self.batch)
            self._programs[part] = self._lowered[part].compile()
        return self._programs[part]

    def flops(self, part: str) -> float:
        """Operations of a program on one device, before compilation: afterwards those in libraries are not counted."""
        self.program(part)
        return (self._lowered[part].cost_analysis() or {}).get("flops", 0.0)

    def train(self, steps: int) -> None:
        program = self.program("train")
        for _ in range(steps):
            self.state, metrics = program(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def inference(self, times: int) -> None:
        program = self.program("inference")
        for _ in range(times):
            detections = program(self.variables, self.batch)
        jax.block_until_ready(detections)


def experiment(settings: Settings) -> ConfigDict:
    """The experiment of a named architecture. No score is too low: the last suppression gets all that it can take."""
    model = architectures.named(settings.model)
    model.dtype = settings.precision
    model.box.score_threshold = 0.0
    config = base.experiment("benchmark", model)
    config.train.batch_size = settings.batch
    config.optimizer.update({"learning_rate": 1e-4, "freeze": zoo.frozen_prefixes(model)})
    return config


def _silence_branches(variables: dict) -> None:
    """Scale every residual branch by zero where norms are frozen: those would let random weights blow up the features.

    Proposals would then be whole images, and most of them suppressed.
    """
    for name, block in variables.get("batch_stats", {}).get("backbone", {}).items():
        if name.startswith("res"):
            last = max(norm for norm in block if norm.startswith("norm"))
            block[last]["scale"] = np.zeros_like(block[last]["scale"])


def synthetic_batch(settings: Settings) -> Batch:
    """Noise with `NUM_OBJECTS` objects an image that fill their boxes, in the first of 100 slots."""
    rng = np.random.default_rng(0)
    b, slots, (height, width) = settings.batch, 100, settings.size
    sides = min(height, width) * np.exp(rng.uniform(np.log(0.1), np.log(0.6), (b, slots, 2)))
    corners = rng.uniform(0, 1, (b, slots, 2)) * (np.array([width, height]) - sides)
    valid = np.broadcast_to(np.arange(slots) < NUM_OBJECTS, (b, slots))
    gt = GroundTruth(
        boxes=np.concatenate([corners, corners + sides], axis=-1).astype(np.float32),
        classes=rng.integers(1, 81, (b, slots)).astype(np.int32),
        valid=valid,
        crowd=np.zeros_like(valid),
        masks=np.full((b, slots, 112, 14), 255, np.uint8),
        has_mask=valid,
    )
    size = np.broadcast_to(np.array(settings.size, np.int32), (b, 2))
    return Batch(
        image=rng.integers(0, 256, (b, height, width, 3)).astype(np.uint8),
        size=size,
        original_size=size,
        image_id=np.arange(b, dtype=np.int32),
        valid=np.ones(b, bool),
        gt=gt,
        num_dropped=np.zeros(b, np.int32),
    )


def cold_start(settings: Settings) -> dict[str, float | None]:
    """Seconds to trace and compile each program, the time of the first finished step, and peak memory by then (MiB)."""
    detector = Detector(settings)

    def compile_seconds(part: str) -> float:
        start = time.perf_counter()
        detector.program(part)
        return time.perf_counter() - start

    train = compile_seconds("train")
    detector.train(1)
    first_step = time.time()
    device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "train": train,
        "first_step": first_step,
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device": device and device / 2**20,
        "inference": compile_seconds("inference"),
    }


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(cold_start(Settings(**{**given, "size": tuple(given["size"])}))))
