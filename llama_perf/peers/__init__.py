"""Engines of other libraries, which run the same rows on the same weights.

Each offers `llama_perf.llama.row_engine`. Knows neither measuring nor rows' results.
"""
