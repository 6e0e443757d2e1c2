"""What is asked for: rows, the names of schemes and the sets that come along.

Imports neither torch nor torchao, so that a list of rows costs nothing.
"""
