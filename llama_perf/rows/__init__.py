"""The work that is asked for: rows, names of schemes, and the sets that come along.

Imports no torch, so listing rows is fast. Does not know whether this machine can run
a row.
"""
