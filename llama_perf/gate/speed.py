"""A row's speed in the processes of a baseline, and what may be read from it.

Knows baselines, not verdicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llama_perf.gate.noise import Spread, between_processes, shrunk
from llama_perf.gate.speed_baseline import Basis, bases, stored_values, unquantized_row
from llama_perf.gate.thresholds import THRESHOLDS, geometric_mean, minimum_detectable
from llama_perf.results.baseline import Baseline


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSpeed:
    """The mean speed of a row's processes on one basis, and how far they lie apart."""

    mean: float
    processes: int
    spread: Spread

    @property
    def minimum_detectable(self) -> float:
        """The least loss, as a share, that a run finds nine times in ten."""
        return minimum_detectable(self.spread, self.processes)


def stored_speeds(
    baseline: Baseline, basis: Basis = Basis.TOK_S
) -> dict[str, StoredSpeed]:
    """Of every row with enough processes; their deviations are shrunk together."""
    values = {}
    for row in baseline.rows:
        unquantized = unquantized_row(row.row, baseline)
        found = stored_values(basis, row, unquantized)
        # A ratio to itself is 1 in every process.
        if basis is Basis.RATIO and (unquantized is None or unquantized.id == row.id):
            continue
        if found is not None and len(found) >= THRESHOLDS.least_processes:
            values[row.id] = found
    spreads = shrunk(
        [
            between_processes([math.log(each) for each in found])
            for found in values.values()
        ]
    )
    return {
        row_id: StoredSpeed(
            mean=geometric_mean(found), processes=len(found), spread=spread
        )
        for (row_id, found), spread in zip(values.items(), spreads, strict=True)
    }


def gated_speeds(baseline: Baseline) -> dict[str, tuple[Basis, StoredSpeed]]:
    """Each row's on the basis it is judged by first, on the baseline's own machine."""
    by_basis = {basis: stored_speeds(baseline, basis) for basis in Basis}
    found = {}
    for row in baseline.rows:
        wanted = bases(row.row, baseline, baseline.environment)
        for basis in (*wanted, Basis.BANDWIDTH, Basis.TOK_S):
            if row.id in by_basis[basis]:
                found[row.id] = (basis, by_basis[basis][row.id])
                break
    return found


def describe_speeds(baseline: Baseline) -> list[str]:
    """A line for each row that several processes measured: what they tell."""
    speeds = gated_speeds(baseline)
    lines = []
    for row in baseline.rows:
        if row.processes is None or row.between_process_deviation is None:
            continue
        line = (
            f"{row.id}: {len(row.processes)} processes,"
            f" {row.between_process_deviation:.2%} apart"
        )
        if (found := speeds.get(row.id)) is not None:
            basis, speed = found
            line += (
                f" ({speed.spread.deviation:.2%} in {basis.value}, the other rows"
                f" considered); a loss of {speed.minimum_detectable:.1%} is found"
            )
        else:
            line += f"; {THRESHOLDS.least_processes} tell a loss from noise"
        lines.append(line)
    return lines
