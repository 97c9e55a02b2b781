"""Devices that can be compiled for and are not here."""

import os
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from mrcnn_jax import distributed
from mrcnn_jax.errors import UserError
from mrcnn_jax.planning.chips import Chip, Topology

# libtpu looks for chips and for the machines around it unless it is told; its warnings are about chips not found.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
}  # fmt: skip

# With XLA's compiler for GPUs, of one version of CUDA each.
_PLUGINS = ("jax-cuda13-pjrt", "jax-cuda12-pjrt")

# What all GPUs since 2017 have alike, in the form of XLA's `GpuTargetConfigProto`.
_DESCRIPTION = """\
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.units}
  clock_rate_ghz: {gpu.clock_ghz}
  shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block_optin: {gpu.shared_memory_of_a_block}
  l2_cache_size: {gpu.l2_cache}
  device_memory_size: {gpu.memory}
  memory_bandwidth: {bandwidth}
  shared_memory_per_block: 49152
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  threads_per_warp: 32
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
device_description_str: "{gpu.name}"
"""


def mesh_of(topology: Topology) -> Mesh:
    """A one-axis mesh over chips that need not be there.

    Sets environment variables that libtpu reads when it is loaded. Raises `UserError` where the compiler for these
    chips is not installed, or does not know them.
    """
    devices = (_gpus if topology.chip.gpu else _tpus)(topology)
    return topologies.make_mesh(devices, (len(devices.devices),), (distributed.AXIS,))


def compiler_of(topology: Topology) -> str:
    """The package that brings the compiler for these chips."""
    if not topology.chip.gpu:
        return "libtpu"
    installed = {distribution.name for distribution in metadata.distributions()}
    return next((name for name in _PLUGINS if name in installed), _PLUGINS[0])


def _tpus(topology: Topology) -> topologies.TopologyDescription:
    if find_spec("libtpu") is None:
        raise UserError(
            "compiling for a TPU needs libtpu, of 640 MB: pip install 'mrcnn_jax[tpu]', or pip install libtpu"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A chip of v4 is two devices unless its cores are told to act as one.
    options = {"chip_config_name": "megacore"} if topology.kind == "v4" else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--topology={topology.name}: libtpu does not know this slice ({reason}): try one such as v5e:4x4"
        ) from error


def _gpus(topology: Topology) -> topologies.TopologyDescription:
    # XLA complains of drivers that are not found, and of compilations that take long.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    hosts = topology.num_hosts
    # Groups of hosts, hosts of a group, GPUs of a host.
    options: dict[str, Any] = {"topology": f"1x{hosts}x{topology.num_chips // hosts}"}
    try:
        return topologies.get_topology_desc(platform="cuda", target_config=_description(topology.chip), **options)
    except NotImplementedError:
        raise UserError(
            "compiling for a GPU needs JAX's CUDA plugin: pip install 'mrcnn_jax[cuda]', or, without CUDA itself, pip "
            f"install --no-deps jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}"
        ) from None
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--topology={topology.name}: this version of JAX's CUDA plugin does not compile for GPUs that are not "
            f"here ({reason}): install a newer one, pip install --upgrade 'mrcnn_jax[cuda]'"
        ) from error


def _description(chip: Chip) -> str:
    gpu = chip.gpu
    assert gpu is not None
    major, minor = gpu.compute_capability
    return _DESCRIPTION.format(gpu=gpu, major=major, minor=minor, bandwidth=int(chip.bandwidth))
