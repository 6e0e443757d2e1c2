"""Measurements that back a decision or a table in `docs/`; none is part of a run."""
