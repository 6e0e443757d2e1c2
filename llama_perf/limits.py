"""Plain limits on how far a metric may move, and a move in words."""

from __future__ import annotations

from dataclasses import dataclass

from llama_perf.records import MetricChange
from llama_perf.stats import change


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Changes, as shares, from which on a metric counts as worse.

    `tok_s` is a loss of speed, for a baseline of too few processes; the others are
    growths. A growth of the peak by no
    more than `peak_memory_bytes` does not count either: the noise of a resident set
    is absolute.
    """

    tok_s: float
    peak_memory: float
    peak_memory_bytes: int
    model_size: float

    def peak_memory_limit(self, baseline_bytes: int) -> float:
        """The share from which on the peak counts as larger."""
        return max(self.peak_memory, self.peak_memory_bytes / max(baseline_bytes, 1))


# The CPU's are those of a shared machine: see docs/gate.md for what was seen there.
LIMITS = {
    "cuda": Limits(tok_s=0.05, peak_memory=0.02, peak_memory_bytes=0, model_size=0.001),
    "cpu": Limits(
        tok_s=0.25, peak_memory=0.10, peak_memory_bytes=32_000_000, model_size=0.001
    ),
}


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
    digits = 3 if in_gb else 2
    text = (
        f"{moved.metric} {moved.baseline / scale:.{digits}f}{unit} -> "
        f"{moved.current / scale:.{digits}f}{unit} ({moved.change:+.1%}"
    )
    return text + (f", limit {moved.limit:.1%})" if moved.limit is not None else ")")
