"""What a training run needs on chips that are not here: its step, compiled ahead of time, and what follows from that.

`chips` knows the hardware, `devices` makes JAX compile for it, `program` assembles and compiles the step, `arithmetic`
counts in its trace, `compiler_text` reads what the compiler wrote, `search` finds the largest batch, `figures` makes
times, rates and a report of all that.
"""
