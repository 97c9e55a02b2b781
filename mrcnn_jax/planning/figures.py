"""What follows from a compiled step: times that this program cannot fall below, what hosts have to deliver, the report.

Times are bounds, not forecasts: each assumes that a chip does one thing at the vendor's full rate and the others beside
it at no cost. Arithmetic and network are the same at every optimisation level; what is read and written in HBM is an
estimate, of the program as it was compiled.

Host and disk are arithmetic on the images a second of that bound:

    images     each is read, decoded, resized and padded once for every time it is trained on; a core does as many a
               second as was measured for COCO's recipe (docs/benchmarks.md), and a virtual CPU counts as a core
    transfer   the batch as the pipeline makes it: padded images, uint8 or float32, with objects and masks
    disk       checkpoints hold the whole state; there are the last `keep_last`, the best, and the one being written.
               The data set is not counted: COCO's train2017 and val2017 take 20 GB
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jax

from mrcnn_jax.planning.chips import Topology
from mrcnn_jax.planning.compiler_text import OutOfMemory, collectives, largest_arrays
from mrcnn_jax.planning.program import Compiled

# docs/benchmarks.md, 'data pipeline, by CPU time'.
IMAGES_PER_CORE = 68.3


def num_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, which need not exist."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory(compiled: Compiled, topology: Topology) -> dict[str, int]:
    """Bytes of HBM on one chip, by kind."""
    kinds = {kind: getattr(compiled, kind) for kind in ("arguments", "temporaries", "outputs", "code")}
    return {**kinds, "total": compiled.total, "chip": topology.chip.memory}


def roofline(compiled: Compiled, topology: Topology, batch_per_chip: int) -> dict[str, Any]:
    """Seconds of one step that arithmetic, HBM and the links between chips each need at the least, and the slowest."""
    sent = sum(one.sent(topology.num_chips) for one in collectives(compiled.text))
    chip = topology.chip
    seconds = {
        "compute": compiled.flops / chip.flops,
        "hbm": compiled.traffic / chip.bandwidth,
        "network": sent / chip.network,
    }
    bound_by = max(seconds, key=lambda name: seconds[name])
    rate = batch_per_chip * topology.num_chips / seconds[bound_by]
    return {"seconds": seconds, "bound_by": bound_by, "images_per_second": rate}


def host(images_per_second: float, batch: Sequence[jax.ShapeDtypeStruct], topology: Topology) -> dict[str, Any]:
    """What each host has to deliver for so many images a second of all hosts, from the arrays of a global batch."""
    images = images_per_second / topology.num_hosts
    of_an_image = num_bytes(batch) / batch[0].shape[0]
    return {
        "hosts": topology.num_hosts,
        "images_per_second": images,
        "bytes_per_image": of_an_image,
        "bytes_per_second": images * of_an_image,
        "cores_needed": images / IMAGES_PER_CORE,
        "cores": topology.chip.cores,
    }


def disk(state: Any, keep_last: int) -> dict[str, int]:
    """Bytes of one checkpoint, and of all that a run has at one time."""
    checkpoint = num_bytes(state)
    return {"checkpoint_bytes": checkpoint, "checkpoints_bytes": checkpoint * (keep_last + 2)}


def of_outcome(outcome: Compiled | OutOfMemory, topology: Topology, batch_per_chip: int) -> dict[str, Any]:
    """All figures of one compilation."""
    if isinstance(outcome, OutOfMemory):
        needed = {"required": outcome.required, "available": outcome.available}
        return {"fits": False, "memory_bytes": needed, "largest_arrays": list(outcome.largest)}
    found = collectives(outcome.text)
    return {
        "fits": True,
        "memory_bytes": memory(outcome, topology),
        "largest_arrays": list(largest_arrays(outcome.text, compiled=True)),
        "flops": outcome.flops,
        "flops_per_image": outcome.flops / batch_per_chip,
        "hbm_traffic_bytes": outcome.traffic,
        "collectives": [{**asdict(one), "sent_bytes": one.sent(topology.num_chips)} for one in found],
        "roofline": roofline(outcome, topology, batch_per_chip),
    }


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report as people read it."""
    chips, per_chip = report["chips"], report["batch_per_chip"]
    height, width = report["bucket"]
    told = [
        f"{report['experiment']} on {report['topology']}: {chips} chips, {report['dtype']}, images of {height} x "
        f"{width}, {per_chip} a chip, {per_chip * chips} a step"
    ]
    told += _fitting(report) if report["fits"] else _not_fitting(report)
    if (best := report["largest_batch_per_chip"]) is not None:
        known = sorted(report["search"], key=lambda one: one["batch_per_chip"])
        tried = ", ".join(f"{one['batch_per_chip']} {'fits' if one['fits'] else 'does not'}" for one in known)
        told.append(f"largest batch: {best} images a chip ({tried})" if best else f"no batch fits ({tried})")
    compilation = report["compilation"]
    told.append(
        f"compiled in {compilation['seconds']:.0f} s ({compilation['cpu_seconds']:.0f} s of CPU) at optimisation level "
        f"{compilation['optimization_level']}; {', '.join(f'{k} {v}' for k, v in report['versions'].items())}"
    )
    return told


def _not_fitting(report: Mapping[str, Any]) -> list[str]:
    found = report["memory_bytes"]
    return [
        f"does not fit: {gib(found['required'])} of HBM are needed and {gib(found['available'])} there; the largest "
        f"array is {report['largest_arrays'][0]}",
        _arrays(report["largest_arrays"]),
    ]


def _fitting(report: Mapping[str, Any]) -> list[str]:
    found, bound, host, disk = (report[key] for key in ("memory_bytes", "roofline", "host", "disk"))
    kinds = ", ".join(f"{kind} {gib(found[kind])}" for kind in ("arguments", "temporaries", "outputs", "code"))
    times = ", ".join(f"{name} {1e3 * seconds:.3g} ms a step" for name, seconds in bound["seconds"].items())
    told = [
        f"fits: {gib(found['total'])} of {gib(found['chip'])} a chip ({kinds})",
        _arrays(report["largest_arrays"]),
        f"arithmetic: {report['flops'] / 1e12:.3g} TFLOP a chip and step, {report['flops_per_image'] / 1e9:.4g} GFLOP "
        f"an image; {gib(report['hbm_traffic_bytes'])} read and written",
    ]
    told += [
        f"{one['kind']}: {one['count']}, of {one['bytes'] / 2**20:.4g} MiB; each chip sends "
        f"{one['sent_bytes'] / 2**20:.4g} MiB"
        for one in report["collectives"]
    ] or ["no collectives"]
    return [
        *told,
        f"bound, as compiled: {bound['images_per_second']:.4g} images/s, by {bound['bound_by']} ({times})",
        f"host: {host['images_per_second']:.4g} images/s and {host['bytes_per_second'] / 1e9:.3g} GB/s to the chips on "
        f"each of {host['hosts']}, which takes {host['cores_needed']:.3g} of {host['cores']} cores at "
        f"{IMAGES_PER_CORE} images/s a core",
        f"disk: checkpoints of {disk['checkpoint_bytes'] / 1e9:.3g} GB, {disk['checkpoints_bytes'] / 1e9:.3g} GB at "
        "one time, and the data set",
    ]


def _arrays(arrays: Sequence[str]) -> str:
    return f"largest arrays: {'; '.join(arrays)}"


def gib(size: int | float) -> str:
    """A size in GiB, as text."""
    return f"{size / 2**30:.2f} GiB"
