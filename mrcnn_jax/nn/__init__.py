"""Flax Linen layers; they know no boxes."""
