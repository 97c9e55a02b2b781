"""Experiments: one file a row of a table.

`get_config(mode)` returns the whole experiment; mode `smoke` is a laptop's three steps.
"""
