"""Experiments: one file a row of a table, in a folder a paper; README.md lists them.

`get_config(mode)` returns the whole experiment; mode `smoke` is a laptop's three steps. PUBLISHED are the figures to
reproduce, in points, and SOURCE is where they are from; OURS are those of our own run, and LOG says of which.
"""
