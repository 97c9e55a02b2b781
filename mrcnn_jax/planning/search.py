"""The largest batch that a chip has room for, found by compiling."""

from collections.abc import Callable, Mapping

from mrcnn_jax.planning.compiler_text import OutOfMemory
from mrcnn_jax.planning.program import Compiled

Outcome = Compiled | OutOfMemory


def largest_batch(
    attempt: Callable[[int], Outcome], known: Mapping[int, Outcome], step: int, limit: int, memory: int
) -> tuple[int, dict[int, Outcome]]:
    """The largest multiple of `step` images whose program fits, 0 for none, and all outcomes by their batch.

    `attempt` compiles one batch; `known` has the outcomes that there are already, at least one. That a program does not
    fit in `memory` is told in a fraction of the time that one takes which does, so that large batches are tried first.
    Nothing above `limit` is tried.
    """
    outcomes = dict(known)
    while True:
        fits = max((batch for batch, outcome in outcomes.items() if isinstance(outcome, Compiled)), default=0)
        fails = min(
            (batch for batch, outcome in outcomes.items() if isinstance(outcome, OutOfMemory)), default=limit + step
        )
        if fails - fits <= step:
            return fits, outcomes
        if fits and fails <= limit:
            # The line between the two; but where memory is short the compiler saves some, and the line is too high.
            line = (memory - _needed(outcomes[fits])) / (_needed(outcomes[fails]) - _needed(outcomes[fits]))
            guess = fits + int(min(line, 0.85) * (fails - fits))
        else:
            # As if half of what one batch needs did not grow, which is a large share.
            known_batch = fits or fails
            guess = int(known_batch * (2 * memory / _needed(outcomes[known_batch]) - 1))
        batch = min(max((guess // step + 1) * step, fits + step), fails - step)
        outcomes[batch] = attempt(batch)


def _needed(outcome: Outcome) -> int:
    return outcome.required if isinstance(outcome, OutOfMemory) else outcome.peak
