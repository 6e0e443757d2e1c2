"""The tables of `docs/`, computed and written in place."""
