"""The records that are stored: measurements, verdicts, baselines, results of a run.

Frozen records, and the files of baselines. Imports no torch; does not know how the
records came about.
"""
