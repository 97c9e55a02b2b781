"""Where a number that is not finite came from."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


def first_non_finite(model: nn.Module, state: Any, batch: Any, seed: int) -> str:
    """The first tensor with a NaN or infinity when `batch` passes through the model of `state`, in words.

    Looked for in this order: parameters, buffers, each layer's output in the order of the program, the losses, the
    gradients, their norm.
    """
    state, batch = jax.tree.map(jnp.asarray, jax.device_get((state, batch)))
    for kind, tree in (("parameter", state.params), ("buffer", state.batch_stats)):
        if name := _first_bad(tree):
            return f"{kind} {name}"
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    (losses, _), found = model.apply(
        variables, batch, key, method="losses", mutable=["intermediates", "batch_stats"], capture_intermediates=True
    )
    if name := _first_bad(found["intermediates"]):
        return f"the output of {name}"
    if name := _first_bad(losses):
        return f"loss {name}"

    def total(params):
        losses, _ = model.apply({**variables, "params": params}, batch, key, method="losses", mutable=["batch_stats"])[
            0
        ]
        return sum(total / jnp.maximum(weight, 1.0) for total, weight in losses.values())

    gradient = jax.grad(total)(state.params)
    if name := _first_bad(gradient):
        return f"the gradient of {name}"
    if not jnp.isfinite(optax.tree.norm(gradient)):
        return "the norm of the gradient, whose square is too large for float32"
    return "nothing that a second pass would show"


def _first_bad(tree: Any, name: str = "") -> str | None:
    """The name of the first leaf that is not finite; in a dict, in order of insertion, which is that of the program."""
    if isinstance(tree, Mapping):
        children = ((f"{name}/{key}" if name else str(key), child) for key, child in tree.items())
        return next((bad for key, child in children if (bad := _first_bad(child, key))), None)
    finite = (np.all(np.isfinite(np.asarray(x, np.float32))) for x in jax.tree.leaves(tree) if _is_float(x))
    return None if all(finite) else name.removesuffix("/__call__")


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)
