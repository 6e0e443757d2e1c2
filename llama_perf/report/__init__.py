"""A run's results as text, markdown, JSON and CSV.

Knows results and verdicts as they are stored; measures and judges nothing.
"""

from llama_perf.report.formats import check_path, draw, names, suffixes, write

__all__ = ["check_path", "draw", "names", "suffixes", "write"]
