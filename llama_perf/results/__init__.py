"""The records that are stored: measurements, verdicts, baselines, results of a run.

Frozen records without arithmetic. Imports no torch; does not know how they came about.
"""
