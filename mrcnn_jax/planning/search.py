"""The largest batch that a chip has room for, found by compiling."""

from collections.abc import Callable, Mapping

from mrcnn_jax.planning.compiler_text import OutOfMemory
from mrcnn_jax.planning.program import Compiled

Outcome = Compiled | OutOfMemory


def largest_batch(
    attempt: Callable[[int], Outcome], known: Mapping[int, Outcome], step: int, limit: int, memory: int
) -> tuple[int, dict[int, Outcome]]:
    """The largest multiple of `step` images whose program fits, 0 for none, and all outcomes by their batch.

    `attempt` compiles one batch; `known` has the outcomes that there are already, at least one. Memory grows about
    evenly with the batch, so that the next one tried is where a line through two outcomes reaches the `memory` of a
    chip. Nothing above `limit` is tried.
    """
    outcomes = dict(known)
    while True:
        fits = max((batch for batch, outcome in outcomes.items() if isinstance(outcome, Compiled)), default=0)
        fails = min(
            (batch for batch, outcome in outcomes.items() if isinstance(outcome, OutOfMemory)), default=limit + step
        )
        if fails - fits <= step:
            return fits, outcomes
        guess = _where_memory_ends(outcomes, fits, fails, memory) // step * step
        batch = min(max(guess, fits + step), fails - step)
        outcomes[batch] = attempt(batch)


def _where_memory_ends(outcomes: Mapping[int, Outcome], fits: int, fails: int, memory: int) -> int:
    """The batch at which memory is used up, by the two outcomes next to that."""
    below = sorted(batch for batch in outcomes if batch <= fits)
    above = sorted(batch for batch in outcomes if batch >= fails)
    near = (below[-1:] + above[:1]) if below and above else (below[-2:] or above[:2])
    points = [(batch, _needed(outcomes[batch])) for batch in near]
    # Nothing at all is needed by no image, as long as nothing else is known.
    (b0, m0), (b1, m1) = points if len(points) == 2 else [(0, 0), points[0]]
    slope = (m1 - m0) / (b1 - b0)
    return int(b1 + (memory - m1) / slope) if slope > 0 else (fits + fails) // 2


def _needed(outcome: Outcome) -> int:
    return outcome.required if isinstance(outcome, OutOfMemory) else outcome.arguments + outcome.temporaries
