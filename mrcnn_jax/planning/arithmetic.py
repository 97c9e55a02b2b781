"""The arithmetic of a traced program, counted without compiling it; XLA's own count has every loop once."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var


def multiplications(
    jaxpr: Jaxpr, *, loops_once: bool = False, platform: str | None = None, used: Sequence[bool] | None = None
) -> int:
    """Those of all convolutions and matrix products in a traced program on which its result depends.

    A scan counts for each of its turns unless `loops_once`, a loop of unknown length once, and of branches the most
    laborious; where `platform` is given ('cpu', 'cuda', 'tpu'), of those made for platforms its own. `used` tells which
    of the results count as such; by default all.
    """
    results = [var for i, var in enumerate(jaxpr.outvars) if used is None or used[i]]
    total, needed = 0, {var for var in results if isinstance(var, Var)}
    for equation in reversed(jaxpr.eqns):
        if needed.isdisjoint(equation.outvars):
            continue
        total += _of_equation(equation, loops_once, platform, [var in needed for var in equation.outvars])
        needed.update(var for var in equation.invars if isinstance(var, Var))
    return total


def _of_equation(equation: JaxprEqn, loops_once: bool, platform: str | None, used: list[bool]) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, layout = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[layout[0]]
    inner = [
        multiplications(jaxpr, loops_once=loops_once, platform=platform, used=_used_inside(equation, jaxpr, used))
        for jaxpr in _jaxprs(params.values())
    ]
    if name == "cond":
        platforms = params.get("branches_platforms")
        return max(inner) if platform is None or platforms is None else inner[_branch_of(platform, platforms)]
    return sum(inner) * (params["length"] if name == "scan" and not loops_once else 1)


def _branch_of(platform: str, platforms: Sequence[tuple[str, ...] | None]) -> int:
    """The branch that names a platform, or else the last, which is for all others."""
    return next((i for i, names in enumerate(platforms) if names and platform in names), len(platforms) - 1)


def _used_inside(equation: JaxprEqn, jaxpr: Jaxpr, used: list[bool]) -> list[bool] | None:
    """Which results of a program within an equation are used; None is all, also where they are not the equation's own.

    What one turn of a scan hands to the next, which has the same shape outside, may be used there.
    """
    if equation.primitive.name == "while" or len(jaxpr.outvars) != len(used):
        return None
    if equation.primitive.name != "scan":
        return used
    pairs = zip(used, jaxpr.outvars, equation.outvars, strict=True)
    return [is_used or inner.aval.shape == outer.aval.shape for is_used, inner, outer in pairs]


def _jaxprs(values: Iterable[Any]) -> list[Jaxpr]:
    found = []
    for value in values:
        if isinstance(value, ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, Jaxpr):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _jaxprs(value)
    return found
