"""One step of training: losses, gradient, update, as a pure function of (state, batch)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from mrcnn_jax import distributed
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


def state_shardings(state: TrainState, mesh: Mesh, *, shard_optimizer: bool) -> TrainState:
    """Where each array of a state goes: a copy to every device; with `shard_optimizer`, of the optimiser's a part.

    After ZeRO's first stage (Rajbhandari et al., 2020). `state` may be one of shapes.
    """
    whole = distributed.whole(state, mesh)
    return whole.replace(opt_state=distributed.in_parts(state.opt_state, mesh)) if shard_optimizer else whole


def configured_step(
    config: ConfigDict, model: RCNN, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The step that an experiment trains with, of its model and optimiser: what is run, and what is planned."""
    return make_train_step(
        model,
        optimizer,
        seed=config.seed,
        accumulate=config.train.accumulate,
        ema_decay=config.train.ema,
        mesh=mesh,
        shard_optimizer=config.train.shard_optimizer,
    )


def make_train_step(
    model: RCNN,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    mesh: Mesh | None = None,
    shard_optimizer: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """A step over a whole batch, of which each device of the mesh takes its part; without a mesh, one does it all.

    Every loss term is its total over all images and devices divided by its weight over all of them, so the result does
    not depend on how images are spread. With `accumulate` a device's part is cut into that many micro-batches, one
    after the other; each is normalised by its own weights and the gradients are averaged, as every framework does.

    With `shard_optimizer` each device gets the sum of a part of the gradient and updates that part; the parameters are
    then put together on all. To be compiled by `distributed.compile_step` with the shardings of `state_shardings`.
    """

    def add_up(x: Any) -> Any:
        return x if mesh is None else jax.lax.psum(x, distributed.AXIS)

    def loss_fn(params: Any, batch_stats: Any, batch: Batch, key: Array):
        variables = {"params": params, "batch_stats": batch_stats}
        (losses, watched), updates = model.apply(variables, batch, key, method="losses", mutable=["batch_stats"])
        weights = add_up({name: weight for name, (_, weight) in losses.items()})
        shares = {name: total / jnp.maximum(weights[name], 1.0) for name, (total, _) in losses.items()}
        return sum(shares.values()), (shares, watched, updates.get("batch_stats", {}))

    def at_once(params: Any, batch_stats: Any, batch: Batch, key: Array):
        (_, (shares, watched, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, batch_stats, batch, key
        )
        return grads, shares, watched, stats

    def accumulated(params: Any, batch_stats: Any, batch: Batch, key: Array):
        micro = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)

        def one(carry, batch):
            grads, shares, watched, stats = at_once(params, carry[1], batch, key)
            return (jax.tree.map(jnp.add, carry[0], grads), stats), (shares, watched)

        zeros = jax.tree.map(jnp.zeros_like, params)
        (grads, stats), (shares, watched) = jax.lax.scan(one, (zeros, batch_stats), micro)
        grads, shares = jax.tree.map(lambda x: x / accumulate, grads), jax.tree.map(jnp.mean, shares)
        return grads, shares, jax.tree.map(jnp.sum, watched), stats

    def gradient(step: Array, params: Any, batch_stats: Any, batch: Batch):
        """Of the whole batch, the shares of the losses in it, what is watched, and the new buffers."""
        one_device = at_once if accumulate == 1 else accumulated
        if mesh is None:
            return one_device(params, batch_stats, batch, jax.random.fold_in(jax.random.key(seed), step))
        places = (distributed.in_parts if shard_optimizer else distributed.whole)(params, mesh)

        def each_device(step, params, batch_stats, batch):
            key = jax.random.fold_in(jax.random.key(seed), step)
            grads, shares, watched, stats = one_device(params, batch_stats, batch, key)
            return distributed.sums(grads, places), add_up(shares), add_up(watched), stats

        everywhere, split = PartitionSpec(), PartitionSpec(distributed.AXIS)
        out_specs = (jax.tree.map(lambda place: place.spec, places), everywhere, everywhere, everywhere)
        in_specs = (everywhere, everywhere, everywhere, split)
        return jax.shard_map(each_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(
            step, params, batch_stats, batch
        )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        grads, shares, watched, stats = gradient(state.step, state.params, state.batch_stats, batch)
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
