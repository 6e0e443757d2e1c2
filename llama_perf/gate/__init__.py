"""Results compared with a baseline: one verdict a row, each with its reason.

Imports neither torch nor torchao; runs nothing.
"""
