"""The training step of an experiment, assembled as `train` does it but from shapes alone, and compiled for chips."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import ShapeDtypeStruct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mrcnn_jax import distributed
from mrcnn_jax.data import pipeline
from mrcnn_jax.data.dataset import Category, Dataset, Record
from mrcnn_jax.models import zoo
from mrcnn_jax.models.build import build, variable_shapes
from mrcnn_jax.optim import optimizer
from mrcnn_jax.planning.arithmetic import multiplications
from mrcnn_jax.planning.chips import Topology
from mrcnn_jax.planning.compiler_text import OutOfMemory, largest_arrays, out_of_memory, traffic
from mrcnn_jax.train_step import TrainState, configured_step, init_state, state_shardings
from mrcnn_jax.types import Proposals


@dataclass(frozen=True)
class Compiled:
    """A program that fits, by the compiler's own account, of one chip."""

    # Bytes: what is passed in, what is needed meanwhile with the gaps between, what comes out beside that, and the
    # program itself.
    arguments: int
    temporaries: int
    outputs: int
    code: int
    # Bytes of all arrays that are alive at one time, at the most.
    peak: int
    flops: float
    # Bytes that are read and written in HBM: an estimate.
    traffic: float
    text: str

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return self.arguments + self.temporaries + self.outputs + self.code


def largest_bucket(config: ConfigDict) -> tuple[int, int]:
    """Height and width of the padded shape with the most pixels, of several the first."""
    buckets = [tuple(bucket) for bucket in config.data.buckets]
    return max(buckets, key=lambda bucket: bucket[0] * bucket[1])


def resolved(config: ConfigDict) -> ConfigDict:
    """The config as training resolves it, but for what comes with data: classes and keypoints are the config's own."""
    config = config.copy_and_resolve_references()
    config.optimizer.freeze = (*config.optimizer.freeze, *zoo.frozen_prefixes(config.model))
    return config


def batch_shapes(config: ConfigDict, bucket: tuple[int, int], batch_size: int) -> tuple[list[ShapeDtypeStruct], Any]:
    """The shapes of all arrays of a training batch of `batch_size` images, and the structure of a `Batch` of them.

    One black image passes through the pipeline that training has, and its batch of one is made longer.
    """
    config = config.copy_and_resolve_references()
    config.data.update({"buckets": (bucket,), "keep_empty": True, "num_workers": 0})
    num_keypoints = config.model.keypoint.num_keypoints if config.data.keypoints and config.model.keypoint else 0
    empty = np.zeros(0, np.float32)
    proposals = None
    if config.model.rpn is None:
        proposals = Proposals(np.zeros((0, 4), np.float32), empty, np.zeros(0, bool))
    record = Record(
        image_id=0, source=np.zeros((*bucket, 3), np.uint8), height=bucket[0], width=bucket[1],
        boxes=np.zeros((0, 4), np.float32), classes=np.zeros(0, np.int32), crowd=np.zeros(0, bool), areas=empty,
        segmentations=(), keypoints=np.zeros((0, num_keypoints, 3), np.float32) if num_keypoints else None,
        proposals=proposals,
    )  # fmt: skip
    category = Category(1, "object", tuple(map(str, range(num_keypoints))), tuple(range(num_keypoints)))
    loader = pipeline.train_loader(Dataset((category,), [record]), config, config.seed, 1)
    try:
        one = next(loader)
    finally:
        loader.close()
    arrays, structure = jax.tree.flatten(one)
    # On a device an integer has 32 bits.
    kinds = [(x.shape[1:], jax.dtypes.canonicalize_dtype(x.dtype)) for x in arrays]
    return [ShapeDtypeStruct((batch_size, *shape), dtype) for shape, dtype in kinds], structure


def train_program(
    config: ConfigDict, mesh: Mesh, bucket: tuple[int, int], batch_size: int
) -> tuple[Any, TrainState, list[ShapeDtypeStruct]]:
    """The jitted step that `train` runs on this mesh, and shapes, with sharding, of the state and of a global batch.

    The step takes a batch as the list of its arrays. `config` is one that `resolved` gave. Weights that
    `config.train.init` names are not read, nor are data.
    """
    model = build(config.model, distributed.AXIS)
    variables = variable_shapes(model)
    tx, _ = optimizer(config, variables["params"])
    state = jax.eval_shape(partial(init_state, optimizer=tx, ema=config.train.ema > 0), variables)
    shardings = state_shardings(state, mesh, shard_optimizer=config.train.shard_optimizer)
    train_step = configured_step(config, model, tx, mesh)
    arrays, structure = batch_shapes(config, bucket, batch_size)
    step = distributed.compile_step(
        lambda state, arrays: train_step(state, jax.tree.unflatten(structure, arrays)), mesh, shardings
    )

    def placed(x, sharding: NamedSharding) -> ShapeDtypeStruct:
        return ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    split = NamedSharding(mesh, PartitionSpec(distributed.AXIS))
    return step, jax.tree.map(placed, state, shardings), [placed(x, split) for x in arrays]


def compile_for(traced: jax.stages.Traced, topology: Topology) -> Compiled | OutOfMemory:
    """Compile for the chips that a step was traced for; raises what the compiler raises, but for lack of memory.

    For a TPU arithmetic and traffic are the compiler's, and what loops repeat, which the compiler counts once. For a
    GPU, where the compiler tells neither nor refuses what does not fit, they are those of convolutions and products and
    of the arrays that are made, and whether it fits follows from the memory that the program is laid out in.
    """
    lowered = traced.lower(lowering_platforms=(topology.platform,))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = out_of_memory(str(error))
        if found is None:
            raise
        if found.largest:
            return found
        text = lowered.as_text(dialect="hlo", debug_info=True)
        return replace(found, largest=largest_arrays(text, compiled=False))
    program = _measured(compiled, partial(multiplications, traced.jaxpr.jaxpr, platform=topology.platform))
    if topology.chip.gpu and program.total > topology.chip.memory:
        return OutOfMemory(program.total, topology.chip.memory, largest_arrays(program.text, compiled=True))
    return program


def _measured(compiled: jax.stages.Compiled, counted: Callable[..., int]) -> Compiled:
    """`counted` gives the multiplications of the program, with `loops_once` those in which loops count once."""
    text = compiled.as_text() or ""
    memory: Any = compiled.memory_analysis()
    costs: Any = compiled.cost_analysis()
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes
    # In `temp_size_in_bytes` gaps between arrays count twice; releases before 0.11 have nothing else.
    allocated = getattr(memory, "total_allocation_bytes", 0)
    if costs is None:
        flops, moved = 2.0 * counted(), float(arguments + traffic(text))
    else:
        flops = costs["flops"] + 2 * (counted() - counted(loops_once=True))
        moved = costs["bytes accessed"] + traffic(text) - traffic(text, loops_once=True)
    return Compiled(
        arguments=arguments,
        temporaries=allocated - arguments - outputs if allocated else memory.temp_size_in_bytes,
        outputs=outputs,
        code=memory.generated_code_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        flops=flops,
        traffic=moved,
        text=text,
    )
