"""`pytest tests/perf`: rows as tests, the options, the table at the end.

Knows pytest and pytest-benchmark, and neither measures nor judges.
"""
