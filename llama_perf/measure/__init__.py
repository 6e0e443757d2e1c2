"""One row: build it, check its values, time it and weigh it.

Knows no baseline and no other row.
"""
