"""Strict numerics, four fake devices and a persistent compilation cache for every test."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import local_hosts

# Tests compile far more than they compute.
os.environ["XLA_FLAGS"] = local_hosts.quick_flags()

import jax

# Before any computation: a laptop then exercises the same sharding as a pod.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Started now: a command that a test runs would else choose how many devices there are for all tests after it.
jax.devices()

_CACHE = os.environ.get("MRCNN_TEST_CACHE", str(Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# The longest first, so that at the end no process is left with one of them alone.
_LONGEST = (
    "test_several_hosts", "test_object_store", "test_train", "test_commands", "test_rcnn", "test_stages", "test_names",
    "test_bad_input",
    "test_parity", "test_family", "test_propose", "test_proposals", "test_benchmark", "test_roi_align",
    "test_stablehlo",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Files keep together, and each its order."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
