"""The R-CNN family as a functional model zoo in JAX and Flax.

A trained model is used in two lines:

    model = mrcnn_jax.load("runs/demo")
    results = model.predict(["street.jpg"])

A new one is a set of pure functions, to be jitted, differentiated and sharded:

    model = mrcnn_jax.create("mask_rcnn_r50_fpn", num_classes=80)
    params = model.init(jax.random.key(0))
    losses, watched = model.losses(params, batch, key)
    detections = model.detect(params, batch)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrcnn_jax.model import Model, Result, create, load

__version__ = "0.1.0"
__all__ = ["Model", "Result", "create", "load"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: a worker process or `mrcnn --help` does without JAX.
    if name in __all__:
        from mrcnn_jax import model

        return getattr(model, name)
    raise AttributeError(f"module 'mrcnn_jax' has no attribute '{name}'")
