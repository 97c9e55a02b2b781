"""The first tensor that is not finite is named, wherever it is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from mrcnn_jax.diagnose import first_non_finite
from mrcnn_jax.train_step import init_state


class Steep(nn.Module):
    """One layer and a loss that is `slope` times its output."""

    slope: float

    @nn.compact
    def losses(self, batch, key):
        out = nn.Dense(1, name="layer")(batch)
        return {"box": (out.sum() * self.slope, jnp.float32(1))}, {}


@pytest.mark.parametrize(
    ("weight", "value", "slope", "expected"),
    [
        (jnp.nan, 1.0, 1.0, "parameter layer/kernel"),
        (1.0, jnp.inf, 1.0, "the output of layer"),
        (1e20, 1.0, 1e20, "loss box"),
        (0.0, 1e20, 1e20, "the gradient of layer/kernel"),
        (0.0, 1.0, 1e25, "the norm of the gradient, whose square is too large for float32"),
        (1.0, 1.0, 1.0, "nothing that a second pass would show"),
    ],
)
def test_first_non_finite(weight, value, slope, expected):
    model, batch = Steep(slope), jnp.full((1, 2), value)
    variables = model.init(jax.random.key(0), batch, jax.random.key(0), method="losses")
    variables["params"]["layer"]["kernel"] = jnp.full((2, 1), weight)
    state = init_state(variables, optax.sgd(1.0), ema=False)
    assert first_non_finite(model, state, batch, seed=0) == expected
