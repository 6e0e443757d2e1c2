"""How far a metric may move before it counts as worse, and a move in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from llama_perf.gate.thresholds import THRESHOLDS, change
from llama_perf.results.verdict import MetricChange
from llama_perf.rows.limit_overrides import ProjectLimits, SetLimits
from llama_perf.rows.spec import RowSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Changes, as shares, from which on a metric counts as worse.

    Of speed: `least_loss` beside a baseline whose processes tell a loss from noise,
    `tok_s` beside one of too few. The others are growths. A growth of the peak by no
    more than `peak_memory_bytes` does not count either: the noise of a resident set is
    absolute. `calls` are a step's; `graph_breaks` and `compilations` count how many
    more are allowed.
    """

    least_loss: float = THRESHOLDS.least_loss
    tok_s: float
    peak_memory: float
    peak_memory_bytes: int
    # Allocated bytes, a model's size and calls repeat, or nearly so.
    allocated_memory: float = 0.01
    model_size: float = 0.001
    calls: float = 0.01
    graph_breaks: int = 0
    compilations: int = 0

    def peak_memory_limit(self, baseline_bytes: float) -> float:
        """The share from which on the peak counts as larger."""
        return max(self.peak_memory, self.peak_memory_bytes / max(baseline_bytes, 1))

    def changed(self, changes: Iterable[SetLimits | None]) -> Limits:
        """These with what is set, one after the other."""
        found = self
        for each in changes:
            if each is not None:
                found = replace(found, **each.given)  # type: ignore[arg-type]
        return found


# The CPU's are those of a shared machine: docs/gate-why.md has the measurements.
LIMITS = {
    "cuda": Limits(tok_s=0.05, peak_memory=0.01, peak_memory_bytes=0),
    "cpu": Limits(tok_s=0.25, peak_memory=0.10, peak_memory_bytes=32_000_000),
}


def limits_of(row: RowSpec, project: ProjectLimits | None = None) -> Limits:
    """A row's: its device's, with what the project and its file of rows set."""
    of_project = () if project is None else project.of(row.id)
    return LIMITS[row.device].changed((*of_project, row.limits))


def moved_by(
    metric: str, before: float, current: float, limit: float | None, bad_sign: int
) -> MetricChange:
    """A metric's change; worse beyond `limit` in the direction of `bad_sign`."""
    moved = change(current, before)
    return MetricChange(
        metric=metric,
        baseline=before,
        current=current,
        change=moved,
        limit=limit,
        worse=limit is not None and bad_sign * moved > limit,
    )


def describe(moved: MetricChange) -> str:
    """One metric in words: baseline, current, change and limit."""
    in_gb = moved.metric in {"peak memory", "allocated memory", "model size"}
    unit, scale = (" GB", 1e9) if in_gb else ("", 1.0)
    digits = 2 if moved.metric in _RATES else 3
    text = (
        f"{moved.metric} {moved.baseline / scale:.{digits}f}{unit} -> "
        f"{moved.current / scale:.{digits}f}{unit} ({moved.change:+.1%}"
    )
    return text + (f", limit {moved.limit:.1%})" if moved.limit is not None else ")")


_RATES = {"tok/s", "decode tok/s", "time to first token (s)"}
