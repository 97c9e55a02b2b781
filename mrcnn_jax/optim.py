"""The optimiser and the learning rate of a run, from its config."""

import difflib
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mrcnn_jax.errors import UserError


def optimizer(config: ConfigDict, params: Any) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The update rule of `config.optimizer` for these parameters, and the learning rate as a function of the step.

    'sgd' is PyTorch's: decay is added to the gradient, then momentum without dampening. 'adamw' decays apart from the
    gradient (Loshchilov & Hutter, 2019). Only kernels decay: neither biases nor a norm's scale (Detectron2 decays
    biases too). The gradient of the parameters that are trained is first clipped to the norm `clip_norm`, unless that
    is 0. Parameters under a prefix in `freeze` do not change and have no state. Raises `UserError` for an unknown name
    or a prefix of no parameter.
    """
    c = config.optimizer
    rate = schedule(config)
    decay = optax.add_decayed_weights(c.weight_decay, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree))
    clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
    match c.name:
        case "sgd":
            rule = (clip, decay, optax.trace(c.momentum))
        case "adamw":
            rule = (clip, _adam(), decay)
        case _:
            raise UserError(f"optimizer.name is '{c.name}': choose 'sgd' or 'adamw'")
    rule = optax.chain(*rule, optax.scale_by_learning_rate(rate))
    if not c.freeze:
        return rule, rate
    labels = _labels(params, tuple(c.freeze))
    return optax.multi_transform({"trained": rule, "frozen": optax.set_to_zero()}, labels), rate


def schedule(config: ConfigDict) -> optax.Schedule:
    """The learning rate of a step: scaled with the batch (Goyal et al., 2017), linear warm-up, then 'step' or 'cosine'.

    `learning_rate` is that of a batch of `base_batch_size`. Warm-up multiplies the schedule by a factor that rises from
    `warmup_factor` to 1 in `warmup_steps`, as in Detectron2. 'step' divides by 10 at each of `milestones`; 'cosine'
    reaches 0 at `train.steps`. Raises `UserError` for an unknown name.
    """
    c = config.optimizer
    if c.schedule not in ("step", "cosine"):
        raise UserError(f"optimizer.schedule is '{c.schedule}': choose 'step' or 'cosine'")
    peak = c.learning_rate * config.train.batch_size / c.base_batch_size

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(step / c.warmup_steps, 1.0) if c.warmup_steps else jnp.float32(1)
        factor = c.warmup_factor * (1 - warm) + warm
        if c.schedule == "cosine":
            return peak * factor * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / config.train.steps, 1.0)))
        passed = sum(((step >= milestone).astype(jnp.float32) for milestone in c.milestones), jnp.float32(0))
        return peak * factor * 0.1**passed

    return rate


def _adam() -> optax.GradientTransformation:
    """Adam that also runs under strict dtype promotion, where Optax's power of a float by an integer is an error."""
    adam = optax.scale_by_adam()

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(updates, state, params)

    return optax.GradientTransformation(adam.init, update)


def _labels(params: Any, freeze: tuple[str, ...]) -> Any:
    """'frozen' or 'trained' for each parameter. A prefix ends where a name or its number does: res2 covers res2_0."""
    paths = ["/".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    patterns = {prefix: re.compile(re.escape(prefix.rstrip("/")) + r"(?![^/_])") for prefix in freeze}
    for prefix, pattern in patterns.items():
        if not any(map(pattern.match, paths)):
            names = {path.rsplit("/", n)[0] for path in paths for n in range(path.count("/") + 1)}
            nearest = difflib.get_close_matches(prefix, sorted(names), n=3, cutoff=0.0)
            raise UserError(
                f"optimizer.freeze: no parameter lies under '{prefix}'; the nearest are {', '.join(nearest)}"
            )
    frozen = ["frozen" if any(p.match(path) for p in patterns.values()) else "trained" for path in paths]
    return jax.tree.unflatten(jax.tree.structure(params), frozen)
