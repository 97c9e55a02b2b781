"""The training loop: one function, read from top to bottom. The same for every member of the family."""

import time
from collections.abc import Callable
from contextlib import closing

import jax
import numpy as np
from ml_collections import ConfigDict

from mrcnn_jax import distributed
from mrcnn_jax.checkpoints.initial import adopt, initial_variables, read_source
from mrcnn_jax.checkpoints.metadata import describe
from mrcnn_jax.checkpoints.state import Checkpoints
from mrcnn_jax.data import pipeline, sources
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.diagnose import first_non_finite
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.metrics import best_figure
from mrcnn_jax.evaluation.run import Evaluator, headline
from mrcnn_jax.hosts import agreement, together
from mrcnn_jax.hosts.stall import Watch
from mrcnn_jax.image_log import ImageLog
from mrcnn_jax.interruption import Interrupted, Interruption
from mrcnn_jax.metrics_writer import MetricsWriter
from mrcnn_jax.models import zoo
from mrcnn_jax.models.build import build
from mrcnn_jax.object_store import AnyPath
from mrcnn_jax.optim import optimizer
from mrcnn_jax.overview import parameter_table
from mrcnn_jax.progress import Progress
from mrcnn_jax.run_folder import RunFolder
from mrcnn_jax.train_step import configured_step, init_state, state_shardings

# At least as long lies between two publications of a run's files, checkpoints aside, to an object store.
_SECONDS = 30.0


def train(config: ConfigDict, workdir: AnyPath, *, log: Callable[[str], None] = print) -> dict[str, float]:
    """Train until `config.train.steps`, going on from the newest checkpoint in `workdir`.

    Ctrl-C or SIGTERM ends the run after the step that it is in, with a checkpoint of that step; a second one ends the
    process at once. An evaluation is broken off, and not made up for. Over several hosts, all of which call this, a
    signal to one of them ends all after the same step.

    Returns:
        The last figures, and the `minutes` of training; over several hosts, on the first one.

    Raises:
        UserError: the config, the data or the loss makes it impossible to go on; what was saved stays.
        Interrupted: a signal came, and the state is saved.
    """
    _check_numbers(config)
    folder = RunFolder(workdir)
    distributed.check_devices()
    mesh = distributed.make_mesh()
    distributed.check_batch_size(config.train.batch_size, mesh, config.train.accumulate)

    source = read_source(config, workdir)
    config, adopted = adopt(config, source)
    # After the weights, which may bring an RPN or do without: data come with proposals or not.
    train_data, val_data = _data(config, log)
    config = _resolved(config, train_data)

    best = best_figure(config)
    # First of all that takes time: it refuses the folder of another experiment.
    metadata = describe(config, train_data.categories)
    agreement.same_config(metadata["config"])
    agreement.same_data(config.data.root, training=train_data, validation=val_data)
    agreement.same_folder(workdir)
    checkpoints = Checkpoints(workdir, metadata, keep_last=config.train.keep_last, best_metric=best)

    model = build(config.model, distributed.AXIS)
    variables, report = initial_variables(model, config, source, train_data.categories)
    agreement.same_weights(variables, config.model)
    for line in (*report, *adopted, parameter_table(variables["params"])):
        log(line)
    tx, rate = optimizer(config, variables["params"])
    # On its devices before anything is restored, so that a checkpoint goes there from whatever devices it was saved on.
    state = init_state(variables, tx, ema=config.train.ema > 0)
    shardings = state_shardings(state, mesh, shard_optimizer=config.train.shard_optimizer)
    state = distributed.place(state, shardings)

    restored = checkpoints.restore(state)
    if restored is not None:
        state = restored.state
        log(f"resumed from step {restored.step} in {workdir}")
    start = int(state.step)
    writer = MetricsWriter(folder.local, start, enabled=together.first())

    step_fn = distributed.compile_step(configured_step(config, model, tx, mesh), mesh, shardings)
    evaluator = Evaluator(model, val_data, config, mesh)

    def loader(first_step: int, index: int = jax.process_index(), count: int = jax.process_count()):
        return pipeline.train_loader(train_data, config, config.seed, config.train.batch_size, first_step, index, count)

    def stop_if_not_finite() -> None:
        if bool(state.finite):
            return
        checkpoints.close()
        # The whole batch, over several hosts too: it is looked at layer by layer, by each host for itself.
        step, batch = int(state.step), next(iter(loader(int(state.step), 0, 1)))
        culprit = first_non_finite(
            build(config.model), distributed.fetch(state.replace(opt_state=())), batch, config.seed
        )
        saved = checkpoints.latest_step()
        kept = "No checkpoint was saved yet" if saved is None else f"The last good checkpoint is that of step {saved}"
        raise UserError(
            f"the loss is not finite at step {step}, image ids {', '.join(map(str, batch.image_id))}: first in "
            f"{culprit}. {kept}. Lower config.optimizer.learning_rate, lengthen warmup_steps or set clip_norm, and "
            "run the command again"
        )

    def score(between: Callable[[], None]) -> dict[str, float]:
        return together.share(headline(evaluator(state.evaluated(), folder.local, between=between)))

    def save(step: int, figures: dict[str, float] | None = None) -> None:
        # First, so that no row is missing of what a checkpoint has behind it.
        folder.publish()
        checkpoints.save(step, state, {"step": step}, figures)

    total, figures = config.train.steps, {}
    window = _Window(config.train.batch_size, minutes=writer.last("minutes"))
    interruption = Interruption(together.stop())
    batches = loader(start)
    if batches.num_skipped:
        log(
            f"{batches.num_skipped:,} of {batches.num_skipped + batches.num_images:,} training images are left out, "
            f"which do not have {pipeline.wanted(config)}"
        )
    images = ImageLog(folder.local, start, enabled=config.train.log_images)
    watch = Watch(config.train.stall_minutes, workdir / f"stall_host_{jax.process_index()}.txt")

    def between_batches() -> None:
        watch.alive(f"a batch of the evaluation at step {int(state.step)}")
        interruption.check()

    with folder, interruption, watch, Progress("train", total, start) as progress, closing(batches), closing(images):
        try:
            for done, batch in zip(range(start + 1, total + 1), batches, strict=False):
                log_now, evaluate_now, save_now = (
                    done % every == 0 or done == total
                    for every in (config.train.log_every, config.train.eval_every, config.train.save_every)
                )
                # A signal falls before the step or after it, where `state` can be saved.
                watch.alive(f"step {done - 1}")
                images.write(done, batch.image_id)
                with interruption.held():
                    state, metrics = step_fn(state, distributed.shard(batch, mesh))
                    window.add(metrics)
                    if log_now or evaluate_now or save_now:
                        stop_if_not_finite()
                    if log_now:
                        means = window.close() | {"learning_rate": float(rate(done - 1))}
                        writer.write(done, means)
                        progress.update(done, f"loss {means['loss']:.3f}  {means['images_per_second']:.1f} images/s")
                        folder.publish(every=_SECONDS)
                if evaluate_now:
                    figures = score(between_batches)
                    writer.write(done, figures)
                    shown = (
                        f"{name} {value:.3f}" for name, value in figures.items() if name.endswith("/AP") or name == best
                    )
                    progress.say(f"step {done}: {'  '.join(shown)}")
                    window.restart()
                if evaluate_now or save_now:
                    with interruption.held():
                        save(done, figures if evaluate_now else None)
        except Interrupted as stop:
            stop_if_not_finite()
            step = int(state.step)
            save(step)
            checkpoints.close()
            saved = f"stopped at step {step}, saved in {workdir}: run the same command to go on"
            raise Interrupted(stop.signal, saved) from None
    if not figures:
        figures = score(lambda: None)
    checkpoints.close()
    minutes = writer.last("minutes")
    writer.close()
    folder.publish()
    return figures | {"minutes": minutes}


def _check_numbers(config: ConfigDict) -> None:
    for key in ("batch_size", "steps", "accumulate", "log_every", "eval_every", "save_every", "keep_last"):
        value = config.train[key]
        if value is None or value < 1:
            raise UserError(f"config.train.{key}={value}: give 1 or more")
    if not config.train.stall_minutes > 0:
        raise UserError(f"config.train.stall_minutes={config.train.stall_minutes}: give more than 0")
    if config.seed is None or config.seed < 0:
        raise UserError(f"config.seed={config.seed}: give 0 or more")


def _data(config: ConfigDict, log: Callable[[str], None]) -> tuple[Dataset, Dataset]:
    train_data, train_lines = sources.load(config, "train")
    val_data, val_lines = sources.load(config, "val", train_data.categories)
    for line in (*train_lines, *val_lines):
        log(line)
    return train_data, val_data


def _resolved(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """The config with the data set's own counts of classes and keypoints, and the frozen stages left to themselves."""
    config = config.copy_and_resolve_references()
    config.model.num_classes = dataset.num_classes
    num_keypoints = max(len(category.keypoints) for category in dataset.categories)
    if config.model.keypoint is not None and num_keypoints:
        config.model.keypoint.num_keypoints = num_keypoints
    config.optimizer.freeze = (*config.optimizer.freeze, *zoo.frozen_prefixes(config.model))
    return config


class _Window:
    """Metrics since the last log, fetched from the device only when they are read, and the time that training took."""

    def __init__(self, batch_size: int, minutes: float):
        self._batch_size, self._minutes = batch_size, minutes
        self._metrics: list[dict] = []
        self.restart()

    def restart(self) -> None:
        """Start the clock: what came since the last `close` was not training."""
        self._since = time.perf_counter()

    def add(self, metrics: dict) -> None:
        self._metrics.append(metrics)

    def close(self) -> dict[str, float]:
        """Means over the window; `minutes` counts all of the run's training, without evaluation."""
        rows, self._metrics = jax.device_get(self._metrics), []
        seconds = time.perf_counter() - self._since
        self._minutes += seconds / 60
        self.restart()
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        return means | {"images_per_second": self._batch_size * len(rows) / seconds, "minutes": self._minutes}
