"""Chips by the vendors' figures, and what they come in: slices of TPUs, hosts of GPUs."""

import math
import re
from dataclasses import dataclass

from mrcnn_jax.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it."""

    # As `device.device_kind` has it.
    name: str
    # Major and minor.
    compute_capability: tuple[int, int]
    # Streaming multiprocessors; what each has: float32 units, bytes of shared memory, and those that a block can have.
    multiprocessors: int
    units: int
    shared_memory: int
    shared_memory_of_a_block: int
    clock_ghz: float
    # Bytes.
    l2_cache: int
    memory: int


@dataclass(frozen=True)
class Chip:
    """What the vendor states of one chip, and of the virtual machine that several of them share."""

    # Bytes of HBM that a run can have. A TPU's compiler keeps some of it to itself.
    memory: int
    # Multiplications and additions a second in bfloat16, dense. At the default precision float32 products take the same
    # pass on a TPU; on a GPU they run at half of this, as TF32.
    flops: float
    # Bytes a second between HBM and the chip.
    bandwidth: float
    # Bytes a second that a chip sends over all its links; the vendor states both directions together, twice as much.
    network: float
    # Axes of a slice.
    axes: int
    # Virtual CPUs of a host, and its chips.
    cores: int
    per_host: int
    # A GPU as XLA's compiler has to know it; None for a TPU, which libtpu knows.
    gpu: Gpu | None = None


_H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 233472, 232448, 1.98, 50 * 2**20, 84942979072)
_H200 = Gpu("NVIDIA H200", (9, 0), 132, 128, 233472, 232448, 1.98, 50 * 2**20, 151397597184)
_A100 = Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 167936, 166912, 1.41, 40 * 2**20, 85100068864)

# The part of a GPU's memory that JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_SHARE = 0.75


def _gpu(gpu: Gpu, flops: float, bandwidth: float, network: float, cores: int) -> Chip:
    return Chip(int(_SHARE * gpu.memory), flops, bandwidth, network, axes=1, cores=cores, per_host=8, gpu=gpu)


# TPUs: cloud.google.com/tpu/docs, pages v4, v5e, v5p and v6e, in 2026; v4's links by Jouppi et al., "TPU v4", ISCA 2023
# (six of 50 GB/s). Virtual CPUs are those of ct4p-hightpu-4t, ct5lp-hightpu-4t, ct5p-hightpu-4t and ct6e-standard-4t.
# GPUs: NVIDIA's data sheets of the SXM modules, without sparsity, with NVLink's rates. Virtual CPUs are those of
# a3-highgpu-8g, a3-ultragpu-8g and a2-ultragpu-8g.
CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1200e9, 300e9, axes=3, cores=240, per_host=4),
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9, axes=2, cores=112, per_host=4),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9, axes=3, cores=208, per_host=4),
    "v6e": Chip(32 * 2**30, 918e12, 1638e9, 400e9, axes=2, cores=180, per_host=4),
    "h100": _gpu(_H100, 989e12, 3350e9, 450e9, cores=208),
    "h200": _gpu(_H200, 989e12, 4800e9, 450e9, cores=224),
    "a100": _gpu(_A100, 312e12, 2039e9, 300e9, cores=96),
}

_EXAMPLES = "such as v5e:2x2, v5e:16x16, v6e:4x4, v4:2x2x1 or v5p:4x4x4, or GPUs, such as h100:1 or a100:8"


@dataclass(frozen=True)
class Topology:
    """Chips of one kind: `v5e:16x16` is a slice of 256, `h100:8` a host of 8."""

    name: str
    kind: str
    chip: Chip
    num_chips: int

    @property
    def num_hosts(self) -> int:
        """Virtual machines, of as many chips as those of large slices have."""
        return -(-self.num_chips // self.chip.per_host)

    @property
    def platform(self) -> str:
        """As JAX names it."""
        return "cuda" if self.chip.gpu else "tpu"


def parse_topology(name: str) -> Topology:
    """The chips of a name. Raises `UserError` where there is no such kind, or it comes in other numbers."""
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if found is None or found[1] not in CHIPS:
        raise UserError(
            f"--topology={name} is not known: give a kind of TPU and its chips along each axis, {_EXAMPLES}"
        )
    chip, sides = CHIPS[found[1]], [int(side) for side in found[2].split("x")]
    if chip.gpu and (len(sides) > 1 or not sides[0] or (sides[0] > chip.per_host and sides[0] % chip.per_host)):
        raise UserError(
            f"--topology={name}: give 1 to {chip.per_host} GPUs of one host, or several times {chip.per_host}, such "
            f"as {found[1]}:8 or {found[1]}:16"
        )
    if len(sides) != chip.axes or not all(sides):
        raise UserError(
            f"--topology={name}: a slice of {found[1]} has {chip.axes} axes of 1 or more chips, {_EXAMPLES}"
        )
    return Topology(name, found[1], chip, math.prod(sides))
