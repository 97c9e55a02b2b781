"""One step of training: losses, gradient, update, as a pure function of (state, batch)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from ml_collections import ConfigDict

from mrcnn_jax.models.rcnn import RCNN
from mrcnn_jax.types import Batch


@struct.dataclass
class TrainState:
    """Everything that a step reads and writes."""

    # An int32 and a bool scalar; checkpointing fills the tree with placeholders of its own, hence no shapes here.
    step: Any
    params: Any
    # Buffers: frozen normalisation, or the running statistics of a trained one.
    batch_stats: Any
    opt_state: Any
    # Exponential moving average of the parameters, or None.
    ema: Any
    # False from the first step whose loss or gradient was not finite: the state then stays as it was before that step.
    finite: Any

    def evaluated(self) -> dict:
        """The variables that evaluation uses: the average where one is kept."""
        params = self.params if self.ema is None else self.ema
        return {"params": params, "batch_stats": self.batch_stats}


def init_state(variables: dict, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """The state before step 0."""
    params = variables["params"]
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        finite=jnp.array(True),
    )


def configured_step(
    config: ConfigDict, model: RCNN, optimizer: optax.GradientTransformation, axis_name: str | None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The step that an experiment trains with, of its model and optimiser: what is run, and what is planned."""
    return make_train_step(
        model,
        optimizer,
        seed=config.seed,
        accumulate=config.train.accumulate,
        ema_decay=config.train.ema,
        axis_name=axis_name,
    )


def make_train_step(
    model: RCNN,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """A step on this device's part of the batch; with `axis_name`, sums over the devices of that mesh axis.

    Every loss term is its total over all images and devices divided by its weight over all of them, so the result does
    not depend on how images are spread. With `accumulate` the part is cut into that many micro-batches, one after the
    other; each is normalised by its own weights and the gradients are averaged, as every framework does.
    """

    def add_up(x: Any) -> Any:
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    def loss_fn(params: Any, batch_stats: Any, batch: Batch, key: Array):
        variables = {"params": params, "batch_stats": batch_stats}
        (losses, watched), updates = model.apply(variables, batch, key, method="losses", mutable=["batch_stats"])
        weights = add_up({name: weight for name, (_, weight) in losses.items()})
        shares = {name: total / jnp.maximum(weights[name], 1.0) for name, (total, _) in losses.items()}
        return sum(shares.values()), (shares, watched, updates.get("batch_stats", {}))

    def gradient(state: TrainState, batch: Batch, key: Array):
        (_, (shares, watched, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, batch, key
        )
        return grads, shares, watched, stats

    def accumulated(state: TrainState, batch: Batch, key: Array):
        micro = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)

        def one(carry, batch):
            grads, shares, watched, stats = gradient(state.replace(batch_stats=carry[1]), batch, key)
            return (jax.tree.map(jnp.add, carry[0], grads), stats), (shares, watched)

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (grads, stats), (shares, watched) = jax.lax.scan(one, (zeros, state.batch_stats), micro)
        grads, shares = jax.tree.map(lambda x: x / accumulate, grads), jax.tree.map(jnp.mean, shares)
        return grads, shares, jax.tree.map(jnp.sum, watched), stats

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, shares, watched, stats = (gradient if accumulate == 1 else accumulated)(state, batch, key)
        grads, shares, watched = add_up((grads, shares, watched))
        loss, norm = sum(shares.values()), optax.tree.norm(grads)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None else optax.incremental_update(params, state.ema, 1 - ema_decay)
        finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(norm)
        after = TrainState(state.step + 1, params, stats, opt_state, ema, finite)
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state).replace(finite=finite)
        metrics = {"loss": loss, "gradient_norm": norm, **{f"loss/{name}": value for name, value in shares.items()}}
        metrics |= {name: total / jnp.maximum(weight, 1.0) for name, (total, weight) in watched.items()}
        return after, metrics

    return step
