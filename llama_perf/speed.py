"""A row's speed in the processes of a baseline, and what may be read from it.

Knows baselines, not verdicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llama_perf.records import Baseline
from llama_perf.spread import Spread, between_processes, shrunk
from llama_perf.stats import THRESHOLDS, geometric_mean, minimum_detectable


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSpeed:
    """The mean tok/s of a row's processes, and how far processes lie apart."""

    tok_s: float
    processes: int
    spread: Spread

    @property
    def minimum_detectable(self) -> float:
        """The least loss, as a share, that a run finds nine times in ten."""
        return minimum_detectable(self.spread, self.processes)


def stored_speeds(baseline: Baseline) -> dict[str, StoredSpeed]:
    """Of every row with enough processes; their deviations are shrunk together."""
    rates = {
        row.id: [each.tok_s for each in row.processes]
        for row in baseline.rows
        if row.processes is not None
        and len(row.processes) >= THRESHOLDS.least_processes
    }
    spreads = shrunk(
        [
            between_processes([math.log(each) for each in tok_s])
            for tok_s in rates.values()
        ]
    )
    return {
        row_id: StoredSpeed(
            tok_s=geometric_mean(tok_s), processes=len(tok_s), spread=spread
        )
        for (row_id, tok_s), spread in zip(rates.items(), spreads, strict=True)
    }


def describe_speeds(baseline: Baseline) -> list[str]:
    """A line for each row that several processes measured: what they tell."""
    speeds = stored_speeds(baseline)
    lines = []
    for row in baseline.rows:
        if row.processes is None or row.between_process_deviation is None:
            continue
        line = (
            f"{row.id}: {len(row.processes)} processes,"
            f" {row.between_process_deviation:.2%} apart"
        )
        if (speed := speeds.get(row.id)) is not None:
            line += (
                f" ({speed.spread.deviation:.2%} with the other rows considered);"
                f" a loss of {speed.minimum_detectable:.1%} is found"
            )
        else:
            line += f"; {THRESHOLDS.least_processes} tell a loss from noise"
        lines.append(line)
    return lines
