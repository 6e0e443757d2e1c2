"""All rows of a run, in worker processes that may break; joins measuring and judging.

Knows no command line's own: pytest and `llama-perf` both start a run here.
"""
