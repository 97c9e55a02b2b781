"""Data parallelism: one mesh axis over all devices of all hosts."""

import contextlib
import ctypes
import math
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mrcnn_jax import __version__
from mrcnn_jax.errors import UserError
from mrcnn_jax.hosts import together
from mrcnn_jax.hosts.place import Place
from mrcnn_jax.interruption import Interrupted

AXIS = "data"

# Arrays of fewer numbers stay whole on every device: to bring the parts together would cost more than they save.
_MIN_PARTS = 2**14

# Parameters of glibc's `mallopt`.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


@contextlib.contextmanager
def joined(place: Place | None, wait: float) -> Iterator[None]:
    """Within, JAX's devices are those of all hosts, and only the first host writes to stdout; None is one host.

    Raises:
        UserError: a host does not come within `wait` seconds, or other versions run there; see `roll_call`.
    """
    if place is None:
        yield
        return
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax", "numpy", "orbax-checkpoint")}
    versions = {"mrcnn_jax": __version__, "Python": platform.python_version().rpartition(".")[0]} | versions
    service = together.join(place, versions, wait)
    # Its handler of SIGTERM would take the place of `Interruption`'s.
    jax.config.update("jax_enable_preemption_service", False)
    rank = together.rank_on_machine()
    jax.distributed.initialize(
        service, place.count, place.index, initialization_timeout=int(wait) + 1,
        # Processes that share a machine take a GPU each; TPUs and CPUs see to it themselves.
        local_device_ids=None if rank is None else [rank], cluster_detection_method="deactivate",
    )  # fmt: skip
    with open(os.devnull, "w") as nowhere:
        quiet = contextlib.nullcontext() if together.first() else contextlib.redirect_stdout(nowhere)
        with quiet:
            try:
                yield
            except Interrupted:
                # All hosts were.
                _part()
                raise
            _part()


def _part() -> None:
    jax.distributed.shutdown()
    together.leave()


def check_devices() -> None:
    """Raise `UserError` on every host where not all have as many devices of the same kind."""
    devices = jax.local_devices()
    together.same(
        {"what a host computes with": f"{len(devices)} x {devices[0].device_kind}"},
        "give every host the same devices (nvidia-smi and JAX_PLATFORMS tell what it has)",
    )


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


def whole(tree: Any, mesh: Mesh) -> Any:
    """A sharding for each array: a copy on every device."""
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)


def in_parts(tree: Any, mesh: Mesh) -> Any:
    """A sharding for each array: its longest axis, of those that divide, over all devices; small ones stay whole.

    The rule reads shapes alone, so that a parameter, its gradient and its moments are cut alike.
    """

    def cut(x) -> NamedSharding:
        axes = [axis for axis, length in enumerate(x.shape) if length % mesh.size == 0]
        if not axes or math.prod(x.shape) < _MIN_PARTS:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, AXIS))

    return jax.tree.map(cut, tree)


def sums(tree: Any, shardings: Any) -> Any:
    """Inside `jax.shard_map`: each array's sum over all devices, of which a device gets the part that is its own."""

    def add_up(x, sharding: NamedSharding):
        if AXIS not in sharding.spec:
            return jax.lax.psum(x, AXIS)
        return jax.lax.psum_scatter(x, AXIS, scatter_dimension=tuple(sharding.spec).index(AXIS), tiled=True)

    return jax.tree.map(add_up, tree, shardings)


def place(tree: Any, shardings: Any) -> Any:
    """Put arrays, which have to be the same on every host, where `shardings` say."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    # `device_put` would compare each array over all hosts, one compilation a shape.
    def put(x, sharding):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a copy of every array, which has to be the same on every host, on every device."""
    return place(tree, whole(tree, mesh))


def fetch(tree: Any) -> Any:
    """NumPy arrays of this host's part: its rows of what is dealt out, the whole of what every device has."""

    def get(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
        return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])

    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            # So that one copy does not wait for the one before.
            leaf.copy_to_host_async()
    return jax.tree.map(get, tree)


def own_rows(tree: Any) -> Any:
    """As `fetch` where there are several hosts; on one host all rows are its own, and stay on the device."""
    return tree if jax.process_count() == 1 else fetch(tree)


def data_parallel(function: Callable, mesh: Mesh) -> Callable:
    """Compile `function(variables, batch)` to run on each device's part of the batch, with outputs split like it."""
    everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=(everywhere, split), out_specs=split, check_vma=False)
    return _compiled(mapped, mesh)


def compile_step(step: Callable, mesh: Mesh, shardings: Any) -> Callable:
    """Compile `step(state, batch)`, which spreads its work itself; the state it gives takes the place of the old one.

    `shardings` are those of the state. What else comes out is on every device.
    """
    return _compiled(step, mesh, donate_argnums=0, out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())))


def _compiled(function: Callable, mesh: Mesh, **how: Any) -> Callable:
    options = None
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        # A device's operations would otherwise be spread over all cores, where the other devices' are running too.
        options = {"xla_cpu_multi_thread_eigen": False}
    compiled = jax.jit(function, compiler_options=options, **how)
    return compiled if jax.process_count() == 1 else _begun_together(compiled)


def _begun_together(program: Callable) -> Callable:
    """A program that no host begins before all have compiled it.

    One that is ready early would wait in the first collective, which gives up after half a minute on a CPU.
    """
    executables: dict[Any, Callable] = {}

    def run(*arguments):
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(arguments))
        if shapes not in executables:
            executables[shapes] = program.lower(*arguments).compile()
            together.wait_for_all()
        return executables[shapes](*arguments)

    return run
