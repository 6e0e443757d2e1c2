"""Runs made up for the tests of studies."""

from dataclasses import replace

from llama_perf.results.run import Comparison, Report, Verdict
from tests.correctness.support import record_samples


def report(*verdicts: Verdict, slowed: float = 0.0) -> Report:
    """A run with a row for each verdict; `slowed` were all but the last."""
    results, comparisons = [], []
    for number, verdict in enumerate(verdicts, start=1):
        row = replace(record_samples.CPU_ROW, max_new_tokens=number)
        share = 0.0 if number == len(verdicts) else slowed
        results.append(record_samples.measured(row, injected_slowdown=share))
        comparison = Comparison(
            id=row.id,
            verdict=verdict,
            reason="",
            failed=verdict in (Verdict.SLOWER, Verdict.LARGER),
            suspicious=verdict is Verdict.SLOWER,
            minimum_detectable=0.04,
        )
        comparisons.append(comparison)
    return record_samples.report_of(*results, comparisons=tuple(comparisons))
