"""What is stored: measurements, verdicts, baselines and the results of a run.

Frozen records without arithmetic; imports neither torch nor torchao.
"""
