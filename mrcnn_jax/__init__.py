"""The R-CNN family as a functional model zoo in JAX and Flax."""

__version__ = "0.1.0"
