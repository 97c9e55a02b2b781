"""The parameter table counts what is there."""

import jax
import jax.numpy as jnp

from mrcnn_jax.overview import num_parameters, parameter_table

PARAMS = {"backbone": {"conv": {"kernel": jnp.array([[1.0, 3.0]]), "bias": jnp.zeros(2)}}, "scale": jnp.asarray(5.0)}


def test_counts_every_number():
    assert num_parameters(PARAMS) == 5
    assert num_parameters({}) == 0


def test_a_line_for_each_array_and_the_total():
    lines = [line.split() for line in parameter_table(PARAMS).splitlines()]
    assert lines == [
        ["name", "shape", "count", "mean", "std"],
        ["backbone/conv/bias", "2", "2", "0", "0"],
        ["backbone/conv/kernel", "1x2", "2", "2", "1"],
        ["scale", "scalar", "1", "5", "0"],
        ["total", "5"],
    ]


def test_columns_line_up_and_no_line_ends_in_blanks():
    table = parameter_table({"w": jnp.zeros((1000, 20)), "long name": jnp.ones(3)}).splitlines()
    assert "20,000" in table[2]
    assert (
        len(
            {line.index("count") + 5 if "count" in line else line.index("20,003") + 6 for line in (table[0], table[-1])}
        )
        == 1
    )
    assert all(line == line.rstrip() for line in table)


def test_shapes_alone_are_enough():
    shapes = jax.eval_shape(lambda: PARAMS)
    assert num_parameters(shapes) == 5
    assert parameter_table(shapes).splitlines()[2].split() == ["backbone/conv/kernel", "1x2", "2"]
