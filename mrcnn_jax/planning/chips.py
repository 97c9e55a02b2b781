"""TPU chips by the vendor's figures, and the slices that they come in."""

import math
import re
from dataclasses import dataclass

from mrcnn_jax.errors import UserError


@dataclass(frozen=True)
class Chip:
    """What the vendor states of one chip, and of the virtual machine that four of them share."""

    # Bytes of HBM; the compiler keeps some of it to itself.
    memory: int
    # Multiplications and additions a second in bfloat16. At the default precision float32 products take the same pass.
    flops: float
    # Bytes a second between HBM and the chip.
    bandwidth: float
    # Bytes a second that a chip sends over all its links; the vendor states both directions together, twice as much.
    network: float
    # Axes of a slice.
    axes: int
    # Virtual CPUs of a host of four chips.
    cores: int


CHIPS_PER_HOST = 4

# cloud.google.com/tpu/docs, pages v4, v5e, v5p and v6e, in 2026; v4's links by Jouppi et al., "TPU v4", ISCA 2023 (six
# of 50 GB/s). Virtual CPUs are those of ct4p-hightpu-4t, ct5lp-hightpu-4t, ct5p-hightpu-4t and ct6e-standard-4t.
CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1200e9, 300e9, axes=3, cores=240),
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9, axes=2, cores=112),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9, axes=3, cores=208),
    "v6e": Chip(32 * 2**30, 918e12, 1638e9, 400e9, axes=2, cores=180),
}

_EXAMPLES = "such as v5e:2x2, v5e:16x16, v6e:4x4, v4:2x2x1 or v5p:4x4x4"


@dataclass(frozen=True)
class Topology:
    """A slice: `v5e:16x16` is 256 chips of the kind v5e."""

    name: str
    kind: str
    chip: Chip
    num_chips: int

    @property
    def num_hosts(self) -> int:
        """Virtual machines of four chips, as those of large slices are."""
        return -(-self.num_chips // CHIPS_PER_HOST)


def parse_topology(name: str) -> Topology:
    """The slice of a name. Raises `UserError` where there is no such kind of chip, or it has more or fewer axes."""
    if re.match(r"(a|h|b|gb|l)\d+|v100|cuda|gpu", name.lower()):
        raise UserError(
            f"--topology={name}: plans are for TPUs. A GPU's program is compiled where the GPU is: run a few steps "
            "there, by --config.train.steps=3"
        )
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if found is None or found[1] not in CHIPS:
        raise UserError(
            f"--topology={name} is not known: give a kind of TPU and its chips along each axis, {_EXAMPLES}"
        )
    chip, sides = CHIPS[found[1]], [int(side) for side in found[2].split("x")]
    if len(sides) != chip.axes or not all(sides):
        raise UserError(
            f"--topology={name}: a slice of {found[1]} has {chip.axes} axes of 1 or more chips, {_EXAMPLES}"
        )
    return Topology(name, found[1], chip, math.prod(sides))
