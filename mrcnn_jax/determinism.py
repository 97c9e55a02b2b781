"""`--deterministic`: on GPUs too, the same config and seed give the same bits in every run on the same hardware."""

import os
import pkgutil
from importlib.util import find_spec

# XLA then sorts what a scatter adds, where it else adds in whatever order threads come, and tries no kernels against
# each other to take the fastest, which may be another one at the next start.
_FLAG = "--xla_gpu_deterministic_ops=true"


def require() -> bool:
    """Have XLA compile for GPUs so that runs repeat; to be called before JAX starts.

    Returns whether there is anything to change: not without a plugin of JAX for GPUs, and nothing is touched then.
    """
    if not any(name.startswith(("xla_cuda", "xla_rocm")) for name in _plugins()):
        return False
    # The last of two that differ counts.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
    return True


def _plugins() -> list[str]:
    """JAX's plugins that are installed, as JAX finds them."""
    package = find_spec("jax_plugins")
    folders = (package and package.submodule_search_locations) or []
    return [module.name for module in pkgutil.iter_modules(folders)]
