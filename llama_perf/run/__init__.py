"""All rows of a run, in worker processes that may break."""
