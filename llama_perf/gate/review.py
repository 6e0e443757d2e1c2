"""What a reviewer of `baselines/` asks: what changed, and is it sound.

Pure functions on baselines, their answers in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tabulate import tabulate

from llama_perf.gate.judge_memory import stored_peak
from llama_perf.gate.speed import gated_speeds
from llama_perf.gate.thresholds import (
    THRESHOLDS,
    as_share,
    change,
    geometric_mean,
    screen_limit,
)
from llama_perf.results.baseline import Baseline, BaselineRow
from llama_perf.rows.spec import RowSpec

# Between processes: from here on a baseline finds little but a collapse.
_WIDE = 0.10
_HEADERS = ("row", "tok/s", "change", "peak GB", "change", "model GB", "processes")


def differences(old: Baseline, new: Baseline) -> list[str]:
    """How `new` differs from `old`, in lines; none where they say the same."""
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
    environment = old.environment.changes(new.environment, commit=True)
    if changed:
        grid = tabulate(changed, headers=_HEADERS, disable_numparse=True)
        lines += grid.splitlines()
    if environment:
        lines.append(f"environment: {'; '.join(environment)}")
    return lines


def _cells(then: BaselineRow, now: BaselineRow) -> tuple[str, ...]:
    speeds = _speed(then), _speed(now)
    peaks = stored_peak(then), stored_peak(now)
    sizes = then.measurement.model_size_bytes, now.measurement.model_size_bytes
    counts = len(then.processes or (0,)), len(now.processes or (0,))
    return (
        now.id,
        f"{speeds[0]:.2f} -> {speeds[1]:.2f}",
        f"{change(speeds[1], speeds[0]):+.1%}",
        f"{peaks[0] / 1e9:.2f} -> {peaks[1] / 1e9:.2f}",
        f"{change(peaks[1], peaks[0]):+.1%}" if peaks[0] else "-",
        " -> ".join(dict.fromkeys(f"{size / 1e9:.3f}" for size in sizes)),
        " -> ".join(dict.fromkeys(map(str, counts))),
    )


def _speed(row: BaselineRow) -> float:
    if row.processes is None:
        return row.measurement.tok_s
    return geometric_mean([each.tok_s for each in row.processes])


def problems(baseline: Baseline, known: Mapping[str, RowSpec]) -> Iterator[str]:
    """What makes a baseline a poor one; `known` are the rows of all sets by id."""
    speeds = gated_speeds(baseline)
    for row in baseline.rows:
        if row.id not in known:
            yield f"{row.id}: in no set, so nothing is compared with it"
        elif known[row.id].fingerprint != row.fingerprint:
            yield f"{row.id}: the row changed since: record it again"
        if row.measurement.injected_slowdown:
            yield f"{row.id}: measured with an injected slowdown"
        found = speeds.get(row.id)
        if found is None:
            count = len(row.processes or (0,))
            yield (
                f"{row.id}: {count} of the {THRESHOLDS.least_processes} processes that"
                " tell a loss from noise"
            )
        elif found[1].spread.deviation > _WIDE:
            basis, speed = found
            limit = as_share(screen_limit(speed.spread, speed.processes))
            yield (
                f"{row.id}: processes lie {speed.spread.deviation:.0%} apart in"
                f" {basis.value}, so a loss below {limit:.0%} passes; record it on a"
                " quieter machine"
            )
        if (other := row.environment) is not None:
            changed = other.changes(baseline.environment)
            if changed:
                yield f"{row.id}: of another environment: {'; '.join(changed)}"
