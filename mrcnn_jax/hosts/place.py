"""Where this process stands among those of a run: told by flags, or found in what the scheduler says."""

import os
from dataclasses import dataclass

from mrcnn_jax.errors import UserError

# Seconds that hosts wait for one another when a run starts.
WAIT = 300


@dataclass(frozen=True)
class Place:
    """Host `index` of `count`; the first one listens at `coordinator` (HOST:PORT)."""

    coordinator: str
    count: int
    index: int

    def __post_init__(self) -> None:
        address, _, port = self.coordinator.rpartition(":")
        if not address or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(
                f"--coordinator={self.coordinator} is not HOST:PORT: give the first host's name and a free port of it, "
                "such as node1:8476"
            )
        if not 0 <= self.index < self.count:
            raise UserError(
                f"--process-id={self.index} of --num-processes={self.count}: hosts are numbered from 0 to "
                f"{max(self.count - 1, 0)}"
            )

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def find(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Place | None:
    """The place that the flags name or, without them, that JAX reads from SLURM, Open MPI, Cloud TPU or Kubernetes.

    None is a run on one host.

    Raises:
        UserError: some of the flags are missing, or do not make sense; or the scheduler's own say is incomplete.
    """
    flags = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    missing = [name for name, value in flags.items() if value is None]
    if len(missing) < len(flags):
        if missing:
            raise UserError(f"{', '.join(missing)} missing: a host needs all of {', '.join(flags)}, or none of them")
        place = Place(coordinator, num_processes, process_id)
    else:
        place = _detected()
    return place if place is not None and place.count > 1 else None


def _detected() -> Place | None:
    # What `jax.distributed.initialize` asks too; but that aborts the process where a host does not come.
    from jax._src.clusters import ClusterEnv

    try:
        for cluster in ClusterEnv._cluster_types:
            if _is_meant(cluster.name) and cluster.is_env_present():
                return Place(
                    *ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, cluster.name, WAIT)[:3]
                )
    except Exception as error:
        raise UserError(
            f"the scheduler does not tell which hosts belong to this run ({type(error).__name__}: {error}): give "
            "--coordinator=HOST:PORT --num-processes=N --process-id=I"
        ) from error
    return None


def _is_meant(cluster: str) -> bool:
    """Whether a scheduler that JAX knows is asked. Kubernetes says little of jobs without TPUs: they give the flags."""
    if cluster == "slurm":
        # With one task there is nobody to find.
        return os.environ.get("SLURM_NTASKS", "1") != "1"
    return cluster in ("ompi", "gcetpu", "gketpu")
