"""`mrcnn plan`: whether a training run fits on TPUs or GPUs that are not here, and what it would need there."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.results import write_json
from mrcnn_jax.planning import figures
from mrcnn_jax.planning.chips import Topology, parse_topology
from mrcnn_jax.planning.compiler_text import OutOfMemory
from mrcnn_jax.planning.devices import compiler_of, mesh_of
from mrcnn_jax.planning.program import Compiled, compile_for, largest_bucket, resolved, train_program
from mrcnn_jax.planning.search import largest_batch
from mrcnn_jax.progress import Progress

# About what Mask R-CNN R50-FPN takes on one core without and with all optimisations, for the estimate.
_SECONDS = {("tpu", "O0"): 150, ("tpu", "full"): 700, ("cuda", "full"): 70}
# No larger batch is tried.
_LIMIT = 1024


def run(
    config: ConfigDict,
    topology_name: str,
    batch_per_chip: int | None,
    search: bool,
    full: bool,
    json_path: Path | None,
) -> int:
    """Compile the training step for a topology, print the report, and write it as JSON too.

    `batch_per_chip` is by default the config's batch dealt out over the chips. `full` compiles with all optimisations,
    `search` looks for the largest batch that fits. Returns 0 where the batch fits, 1 where it does not.

    Raises:
        UserError: unknown chips, a batch that does not divide, no compiler for them.
    """
    topology = parse_topology(topology_name)
    batch_per_chip = _batch_per_chip(config, topology, batch_per_chip)
    # The chips are the compiler's; nothing runs on whatever accelerator is here.
    jax.config.update("jax_platforms", "cpu")
    # What is compiled for chips that are not here cannot be read back from it.
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = mesh_of(topology)
    # What XLA does for GPUs takes a minute, and is not less at O0.
    level = "full" if full or topology.chip.gpu else "O0"
    if level != "full":
        jax.config.update("jax_optimization_level", level)
    began, cpu_began = time.monotonic(), time.process_time()

    attempts = _Attempts(resolved(config), topology, mesh, level)
    outcomes = {batch_per_chip: attempts(batch_per_chip)}
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
    best = None
    if search:
        best, outcomes = largest_batch(attempts, outcomes, config.train.accumulate, _LIMIT, topology.chip.memory)
    report = {
        "experiment": config.name,
        "topology": topology.name,
        "chips": topology.num_chips,
        "dtype": config.model.dtype,
        "bucket": list(attempts.bucket),
        "batch_per_chip": batch_per_chip,
        **attempts.figures(batch_per_chip, outcomes[batch_per_chip]),
        "largest_batch_per_chip": best,
        "search": [
            {"batch_per_chip": tried, **figures.of_outcome(outcome, topology, tried)}
            for tried, outcome in sorted(outcomes.items())
        ],
        "compilation": {"seconds": seconds, "cpu_seconds": cpu_seconds, "optimization_level": level},
        "versions": {name: metadata.version(name) for name in ("jax", compiler_of(topology))},
    }
    print("\n".join(figures.lines(report)))
    if json_path is not None:
        write_json(report, json_path)
    return 0 if report["fits"] else 1


class _Attempts:
    """Compiles a batch, by its images a chip, and tells how it went."""

    def __init__(self, config: ConfigDict, topology: Topology, mesh: Mesh, level: str):
        self.bucket = largest_bucket(config)
        self._config, self._topology, self._mesh, self._level = config, topology, mesh, level

    def __call__(self, batch_per_chip: int) -> Compiled | OutOfMemory:
        with _waiting(
            f"compile {batch_per_chip} images a chip for {self._topology.name}",
            _SECONDS[self._topology.platform, self._level],
        ) as say:
            step, state, batch = self._program(batch_per_chip)
            outcome = compile_for(step.trace(state, batch), self._topology)
            told = "fit" if isinstance(outcome, Compiled) else f"do not fit: {figures.gib(outcome.required)} needed"
            say(f"{batch_per_chip} images a chip {told}")
            return outcome

    def figures(self, batch_per_chip: int, outcome: Compiled | OutOfMemory) -> dict[str, Any]:
        """Those of the step and, where it fits, of hosts and disk."""
        found = figures.of_outcome(outcome, self._topology, batch_per_chip)
        if not found["fits"]:
            return found
        _, state, batch = self._program(batch_per_chip)
        rate = found["roofline"]["images_per_second"]
        return {
            **found,
            "host": figures.host(rate, batch, self._topology),
            "disk": figures.disk(state, self._config.train.keep_last),
        }

    def _program(self, batch_per_chip: int):
        return train_program(self._config, self._mesh, self.bucket, batch_per_chip * self._topology.num_chips)


def _batch_per_chip(config: ConfigDict, topology: Topology, given: int | None) -> int:
    """Images a chip; raises `UserError` where they do not divide."""
    accumulate, batch_size, chips = config.train.accumulate, config.train.batch_size, topology.num_chips
    if given is None:
        if batch_size < 1 or batch_size % (chips * accumulate):
            steps = f" x {accumulate} accumulation steps" if accumulate > 1 else ""
            raise UserError(
                f"config.train.batch_size={batch_size} does not divide over the {chips} chips of {topology.name}{steps}"
                f": give --batch-per-chip=N, or a multiple of {chips * accumulate}"
            )
        return batch_size // chips
    if given % accumulate:
        raise UserError(
            f"--batch-per-chip={given} does not divide by config.train.accumulate={accumulate}: use a multiple"
        )
    return given


@contextmanager
def _waiting(what: str, usual_seconds: int) -> Iterator[Any]:
    """Tells while something runs how long it has taken, and may take yet; gives a function that says a line."""
    began, done = time.monotonic(), threading.Event()

    def tell(progress: Progress) -> None:
        while not done.wait(1.0):
            elapsed = round(time.monotonic() - began)
            note = "seconds of what is usual" if elapsed < usual_seconds else f"longer than is usual: {elapsed} s"
            progress.update(min(elapsed, usual_seconds - 1), note)

    with Progress(what, usual_seconds) as progress:
        progress.say(f"{what}: takes minutes")
        thread = threading.Thread(target=tell, args=(progress,), daemon=True)
        thread.start()
        try:
            yield progress.say
        finally:
            done.set()
            thread.join()
