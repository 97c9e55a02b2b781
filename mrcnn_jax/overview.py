"""The parameters of a model as a table, printed at the start of a run: a wrong count is seen before a wrong loss."""

import math
from typing import Any

import jax
import numpy as np


def num_parameters(params: Any) -> int:
    """How many numbers the pytree holds; its leaves are arrays or `jax.ShapeDtypeStruct`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def parameter_table(params: Any) -> str:
    """A line for each array: path, shape, count and, unless only shapes are known, mean and standard deviation.

    The last line is the total. `params` is a pytree of arrays or `jax.ShapeDtypeStruct`.
    """
    rows = [("name", "shape", "count", "mean", "std")]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        rows.append((name, shape, f"{math.prod(leaf.shape):,}", *_moments(leaf)))
    rows.append(("total", "", f"{num_parameters(params):,}", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Names are read from the left, numbers compared from the right.
    return "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[2:], widths[2:], strict=True)).rstrip()
        for row in rows
    )


def _moments(leaf: Any) -> tuple[str, str]:
    if isinstance(leaf, jax.ShapeDtypeStruct) or 0 in leaf.shape:
        return "", ""
    values = np.asarray(leaf, np.float64)
    return f"{values.mean():.3g}", f"{values.std():.3g}"
