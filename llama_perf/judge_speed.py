"""Whether a row's speed was lost, by how far processes lie apart.

One process makes a row suspicious, fresh ones decide. A baseline of too few processes
has a plain limit. Knows tok/s, and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llama_perf.limits import LIMITS, describe, moved_by
from llama_perf.records import BaselineRow, MetricChange, RowResult
from llama_perf.speed import StoredSpeed
from llama_perf.stats import (
    THRESHOLDS,
    as_share,
    change,
    confirm_limit,
    gain_limit,
    geometric_mean,
    log_loss,
    screen_limit,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedSpeed:
    """What is to be said of a row's tok/s; `told` follows its figures."""

    change: MetricChange
    faster: bool
    told: str = ""
    suspicious: bool = False
    undecided: bool = False
    minimum_detectable: float | None = None

    @property
    def reason(self) -> str:
        """Its figures, and how they were decided on."""
        return describe(self.change) + self.told


def judge_speed(
    result: RowResult,
    stored: BaselineRow,
    speed: StoredSpeed | None,
    fresh: Sequence[RowResult] | None,
) -> JudgedSpeed:
    """tok/s of a measured row beside those stored; `speed` where they tell a spread.

    `fresh` are the row's fresh processes, None where none were asked.
    """
    assert result.measurement is not None, "only a measured row is judged"
    now = result.measurement.tok_s
    if speed is None:
        limit = LIMITS[result.row.device].tok_s
        moved = moved_by("tok/s", stored.measurement.tok_s, now, limit, -1)
        count = len(stored.processes or ()) or 1
        told = (
            f"; a plain limit: the baseline has {count} of the"
            f" {THRESHOLDS.least_processes} processes that tell a loss from noise"
        )
        return JudgedSpeed(change=moved, faster=moved.change > limit, told=told)
    limit = screen_limit(speed.spread, speed.processes)
    loss = log_loss(now, speed.tok_s)
    moved = replace(
        moved_by("tok/s", speed.tok_s, now, as_share(limit), -1), worse=False
    )
    found = JudgedSpeed(
        change=replace(moved, worse=False),
        faster=-loss > gain_limit(speed.spread, speed.processes),
        suspicious=loss > limit,
        minimum_detectable=speed.minimum_detectable,
    )
    return _confirmed(found, speed, fresh) if found.suspicious else found


def _confirmed(
    found: JudgedSpeed, speed: StoredSpeed, fresh: Sequence[RowResult] | None
) -> JudgedSpeed:
    """A suspicious speed after its fresh processes, where there are enough of them."""
    if fresh is None:
        told = "; suspicious, and fresh processes were not asked"
        return replace(found, undecided=True, told=told)
    rates = [each.measurement.tok_s for each in fresh if each.measurement is not None]
    if len(rates) < THRESHOLDS.confirm_processes:
        reason = next((each.told for each in fresh if each.measurement is None), "")
        told = (
            f"; suspicious, and {len(rates)} of {THRESHOLDS.confirm_processes} fresh"
            f" processes came to an end{reason and ': '}{reason}"
        )
        return replace(found, undecided=True, told=told)
    mean = geometric_mean(rates)
    limit = confirm_limit(speed.spread, speed.processes)
    slower = log_loss(mean, speed.tok_s) > limit
    again = change(mean, speed.tok_s)
    told = (
        f"; {'confirmed' if slower else 'not confirmed'} by {len(rates)} fresh"
        f" processes: {mean:.2f} ({again:+.1%}, limit {as_share(limit):.1%})"
    )
    return replace(found, told=told, change=replace(found.change, worse=slower))
