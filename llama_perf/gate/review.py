"""What a reviewer of `baselines/` asks: what changed, and is the baseline good enough.

Pure functions on baselines; their answers are lines of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tabulate import tabulate

from llama_perf.gate.judge_memory import stored_peak
from llama_perf.gate.speed_baseline import SpeedBaseline
from llama_perf.gate.thresholds import (
    THRESHOLDS,
    as_share,
    geometric_mean,
    relative_change,
    screen_limit,
)
from llama_perf.results.baseline import Baseline, BaselineRow
from llama_perf.rows.spec import RowSpec

# With a larger deviation between processes only a collapse of the speed is detected.
_MAX_DEVIATION = 0.10
_HEADERS = ("row", "tok/s", "change", "peak GB", "change", "model GB", "processes")


def differences(old: Baseline, new: Baseline) -> list[str]:
    """The lines that say how `new` differs from `old`; none if they are equal."""
    before = {row.id: row for row in old.rows}
    after = {row.id: row for row in new.rows}
    lines = [f"added: {row_id}" for row_id in after if row_id not in before]
    lines += [f"removed: {row_id}" for row_id in before if row_id not in after]
    both = [(before[row_id], row) for row_id, row in after.items() if row_id in before]
    lines += [
        f"another row under its id: {row.id}"
        for then, row in both
        if then.fingerprint != row.fingerprint
    ]
    changed = [
        _cells(then, row)
        for then, row in both
        if (then.measurement, then.processes) != (row.measurement, row.processes)
    ]
    if changed:
        table = tabulate(changed, headers=_HEADERS, disable_numparse=True)
        lines += table.splitlines()
    if changes := old.environment.changes(new.environment, commit=True):
        lines.append(f"environment: {'; '.join(changes)}")
    return lines


def _cells(then: BaselineRow, now: BaselineRow) -> tuple[str, ...]:
    speeds = _speed(then), _speed(now)
    peaks = stored_peak(then), stored_peak(now)
    sizes = then.measurement.model_size_bytes, now.measurement.model_size_bytes
    counts = _process_count(then), _process_count(now)
    return (
        now.id,
        f"{speeds[0]:.2f} -> {speeds[1]:.2f}",
        f"{relative_change(speeds[1], speeds[0]):+.1%}",
        f"{peaks[0] / 1e9:.2f} -> {peaks[1] / 1e9:.2f}",
        f"{relative_change(peaks[1], peaks[0]):+.1%}" if peaks[0] else "-",
        " -> ".join(dict.fromkeys(f"{size / 1e9:.3f}" for size in sizes)),
        " -> ".join(dict.fromkeys(map(str, counts))),
    )


def _speed(row: BaselineRow) -> float:
    if row.processes is None:
        return row.measurement.tok_s
    return geometric_mean([process.tok_s for process in row.processes])


def _process_count(row: BaselineRow) -> int:
    return 1 if row.processes is None else len(row.processes)


def problems(stored: Baseline, known: Mapping[str, RowSpec]) -> Iterator[str]:
    """The defects of a baseline; `known` are the rows of all sets by their id."""
    baseline = SpeedBaseline(stored)
    for row in stored.rows:
        if row.id not in known:
            yield f"{row.id}: in no set, so nothing is compared with it"
        elif known[row.id].fingerprint != row.fingerprint:
            yield f"{row.id}: the row changed since: record it again"
        if row.measurement.injected_slowdown:
            yield f"{row.id}: measured with an injected slowdown"
        judged = baseline.judged_speed(row.id)
        if judged is None:
            yield (
                f"{row.id}: {_process_count(row)} of the {THRESHOLDS.min_processes}"
                " processes from which noise is estimated"
            )
        elif judged[1].spread.deviation > _MAX_DEVIATION:
            basis, speed = judged
            limit = as_share(screen_limit(speed.spread, speed.processes))
            yield (
                f"{row.id}: processes differ by {speed.spread.deviation:.0%} in"
                f" {basis.value}, so a loss below {limit:.0%} passes; record it on a"
                " quieter machine"
            )
        other = row.environment
        if other is not None and (changes := other.changes(stored.environment)):
            yield f"{row.id}: of another environment: {'; '.join(changes)}"


def describe_speeds(stored: Baseline) -> list[str]:
    """A line for each row that several processes measured: its noise in each."""
    baseline = SpeedBaseline(stored)
    lines = []
    for row in stored.rows:
        if row.processes is None or row.between_process_deviation is None:
            continue
        line = (
            f"{row.id}: {len(row.processes)} processes differ by"
            f" {row.between_process_deviation:.2%}"
        )
        if (judged := baseline.judged_speed(row.id)) is not None:
            basis, speed = judged
            line += (
                f" ({speed.spread.deviation:.2%} in {basis.value}, estimated with the"
                f" other rows); a loss of {speed.minimum_detectable:.1%} is detected"
            )
        else:
            line += f"; noise is estimated from {THRESHOLDS.min_processes}"
        lines.append(line)
    return lines
