"""Data parallelism: one mesh axis over all devices of all hosts."""

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mrcnn_jax.errors import UserError

AXIS = "data"

# Parameters of glibc's `mallopt`.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A one-axis mesh over all devices, or over the first `num_devices`."""
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def split_cpu(num_devices: int) -> None:
    """Let the CPU count as several devices, where that can still be chosen; GPUs and TPUs are not affected.

    XLA runs much of a small training step on one core. With the batch split over as many devices as there are cores,
    all of them work.
    """
    # Once JAX has started, in a notebook or a test, it keeps the devices that it has.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", num_devices)
    if num_devices > 1:
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc, where there is one, keep what is freed for what is asked for next.

    XLA gives the buffers of a CPU step back after it. By default they go back to the system, and to be handed the same
    pages anew, zeroed, takes a fifth of a small step.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        # The heaps of threads other than the first are too small for such buffers.
        libc.mallopt(_M_ARENA_MAX, 1)


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raise `UserError` where a global batch cannot be dealt out evenly."""
    parts = mesh.size * accumulate
    if batch_size % parts:
        raise UserError(
            f"config.train.batch_size={batch_size} does not divide over {mesh.size} devices x {accumulate} "
            f"accumulation steps: use a multiple of {parts}"
        )


def fill_devices(batch_size: int, mesh: Mesh) -> int:
    """The batch size rounded up so that every device gets as many images."""
    return -(-batch_size // mesh.size) * mesh.size


def shard(batch: Any, mesh: Mesh) -> Any:
    """Put this host's part of a global batch on its devices, split along the first axis."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    hosts = jax.process_count()

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(sharding, x, (x.shape[0] * hosts, *x.shape[1:]))

    return jax.tree.map(put, batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def data_parallel(step: Callable, mesh: Mesh, *, batch_outputs: bool = False, donate: bool = False) -> Callable:
    """Compile `step(state, batch)` to run on each device's part of the batch.

    `state` is replicated. The output is replicated too (the step has to make it equal by `psum`), or, with
    `batch_outputs`, split like the batch.
    """
    everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(everywhere, split), out_specs=split if batch_outputs else everywhere, check_vma=False
    )
    options = None
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        # A device's operations would otherwise be spread over all cores, where the other devices' are running too.
        options = {"xla_cpu_multi_thread_eigen": False}
    return jax.jit(mapped, donate_argnums=0 if donate else (), compiler_options=options)
