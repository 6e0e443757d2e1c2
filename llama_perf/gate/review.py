"""What a reviewer of `baselines/` asks: what changed, and is the baseline good enough.

Pure functions on baselines; their answers are lines of text.
"""

from collections.abc import Iterator, Mapping
from statistics import geometric_mean

from tabulate import tabulate

from llama_perf.gate import thresholds
from llama_perf.gate.judgements import stored_peak
from llama_perf.gate.speed_baseline import SpeedBaseline
from llama_perf.gate.thresholds import MIN_PROCESSES, relative_change
from llama_perf.results.baselines import Baseline, BaselineRow
from llama_perf.rows.spec import RowSpec
from llama_perf.words import loss_found

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


def _cells(then: BaselineRow, now: BaselineRow) -> list[str]:
    both = (then, now)
    speed, new_speed = (
        geometric_mean([process.tok_s for process in row.samples]) for row in both
    )
    peak, new_peak = map(stored_peak, both)
    sizes = [f"{row.measurement.model_size_bytes / 1e9:.3f}" for row in both]
    return [
        now.id,
        f"{speed:.2f} -> {new_speed:.2f}",
        f"{relative_change(new_speed, speed):+.1%}",
        f"{peak / 1e9:.2f} -> {new_peak / 1e9:.2f}",
        f"{relative_change(new_peak, peak):+.1%}" if peak else "-",
        " -> ".join(dict.fromkeys(sizes)),
        " -> ".join(dict.fromkeys(str(len(row.samples)) for row in both)),
    ]


def problems(stored: Baseline, known: Mapping[str, RowSpec]) -> Iterator[str]:
    """The defects of a baseline; `known` are the rows of sets and files by id."""
    baseline = SpeedBaseline(stored)
    for row in stored.rows:
        if row.id not in known:
            yield (
                f"{row.id}: in no set, so nothing is compared with it; if a file of"
                " your own has it, name that file: --rows FILE"
            )
        elif known[row.id].fingerprint != row.fingerprint:
            yield f"{row.id}: the row changed since: record it again"
        if row.measurement.injected_slowdown:
            yield f"{row.id}: measured with an injected slowdown"
        judged = baseline.judged_spread(row.id)
        if judged is None:
            yield (
                f"{row.id}: {len(row.samples)} of the {MIN_PROCESSES} processes from"
                " which noise is estimated"
            )
        elif judged[1].deviation > _MAX_DEVIATION:
            basis, spread = judged
            limit = thresholds.as_share(thresholds.screen_limit(spread))
            yield (
                f"{row.id}: processes differ by {spread.deviation:.0%} in"
                f" {basis.value}, so without pairs a loss below {limit:.0%} passes;"
                " record it on a quieter machine"
            )
        other = row.environment
        if other is not None and (changes := other.changes(stored.environment)):
            yield f"{row.id}: of another environment: {'; '.join(changes)}"


def describe_speeds(stored: Baseline) -> Iterator[str]:
    """A line for each row that several processes measured: its noise in each."""
    baseline = SpeedBaseline(stored)
    for row in stored.rows:
        if (deviation := row.between_process_deviation) is None:
            continue
        noise = f"; noise is estimated from {MIN_PROCESSES}"
        if (judged := baseline.judged_spread(row.id)) is not None:
            basis, spread = judged
            noise = (
                f" ({spread.deviation:.2%} in {basis.value}, estimated with the other"
                " rows); smallest loss detected without pairs:"
                f" {loss_found(thresholds.minimum_detectable(spread))}"
            )
        yield f"{row.id}: {len(row.samples)} processes differ by {deviation:.2%}{noise}"
