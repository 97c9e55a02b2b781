"""What a training run needs on chips that are not here: its step, compiled ahead of time, and what follows from that.

`chips` knows the hardware, `program` assembles and compiles the step, `compiler_text` reads what the compiler wrote,
`search` finds the largest batch, `figures` turns all of it into times, rates and a report.
"""
