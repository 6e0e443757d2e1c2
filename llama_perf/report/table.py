"""The one table of a report: its columns and cells, as strings.

Text and markdown differ only in how they draw it. A cell with nothing to say is "-".
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report, RowResult, Status
from llama_perf.results.verdict import Comparison, Verdict

NOTHING = "-"
_COLUMNS = (
    "row",
    "tok/s",
    "change",
    "decode tok/s",
    "first token ms",
    "GB/s",
    "% of bandwidth",
    "peak GB",
    "change",
    "model GB",
    "check dB",
    "verdict",
)
_LEAST_AT = 3
_LOST = {Verdict.SLOWER, Verdict.LARGER, Verdict.UNDECIDED}
_REFERENCE_COLUMNS = ("A100 tok/s", "speed-up", "A100 %", "A100 peak GB")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Headers and rows of cells; `caption` says what every row has in common."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def build_table(report: Report) -> Table:
    """The table of a report.

    The A100's columns stand where a row is in its table, and the least loss of speed
    that is found where a row's baseline has the processes to tell.
    """
    names, common = short_names([result.id for result in report.results])
    with_reference = bool(report.reference)
    with_least = any(each.minimum_detectable for each in report.comparisons)
    rows = []
    for name, result in zip(names, report.results, strict=True):
        comparison = comparison_of(report, result.id)
        cells = [name, *_measured(result.measurement, comparison)]
        if with_least:
            cells.insert(_LEAST_AT, _least(comparison))
        cells.append(comparison.verdict.value if comparison else result.status.value)
        if with_reference:
            cells += _reference(result.measurement, report.reference.get(result.id))
        rows.append(tuple(cells))
    columns = list(_COLUMNS)
    if with_least:
        columns.insert(_LEAST_AT, "finds")
    headers = (*columns, *(_REFERENCE_COLUMNS if with_reference else ()))
    return Table(caption=common, headers=headers, rows=tuple(rows))


def comparison_of(report: Report, row_id: str) -> Comparison | None:
    """The verdict on a row, None where there is none yet."""
    return next((each for each in report.comparisons if each.id == row_id), None)


def short_names(ids: Sequence[str]) -> tuple[list[str], str]:
    """Row ids without the tokens that all of them share, and those tokens."""
    split = [_tokens(row_id) for row_id in ids]
    if len(split) < 2:
        return list(ids), ""
    common = [token for token in split[0] if all(token in each for each in split)]
    names = [".".join(t for t in each if t not in common) for each in split]
    if not all(names) or len(set(names)) < len(names):
        return list(ids), ""
    return names, ".".join(common)


def _tokens(row_id: str) -> list[str]:
    # A dot inside a number (a model's "3.1", a temperature) separates no tokens.
    tokens: list[str] = []
    for part in row_id.split("."):
        if tokens and part[:1].isdigit() and tokens[-1][-1:].isdigit():
            tokens[-1] += f".{part}"
        else:
            tokens.append(part)
    return tokens


def _measured(now: Measurement | None, comparison: Comparison | None) -> list[str]:
    if now is None:
        return [NOTHING] * (len(_COLUMNS) - 2)
    first = now.time_to_first_token_s
    return [
        f"{now.tok_s:.2f}",
        _change(comparison, "tok/s"),
        _number(now.decode_tok_s, ".2f"),
        _number(None if first is None else first * 1e3, ".1f"),
        f"{now.bandwidth_gb_s:.2f}",
        _share(now),
        f"{now.peak_memory_bytes / 1e9:.2f}",
        _change(comparison, "peak memory"),
        f"{now.model_size_bytes / 1e9:.2f}",
        _number(None if now.check is None else now.check.signal_to_noise_db, ".0f"),
    ]


def _reference(now: Measurement | None, then: Measurement | None) -> list[str]:
    if then is None:
        return [NOTHING] * len(_REFERENCE_COLUMNS)
    return [
        f"{then.tok_s:.2f}",
        speed_up(now, then),
        _share(then),
        f"{then.peak_memory_bytes / 1e9:.2f}",
    ]


def speed_up(now: Measurement | None, then: Measurement | None) -> str:
    """How many times as many tok/s, such as "2.31x"; "-" where one is not known."""
    if now is None or then is None:
        return NOTHING
    return f"{now.tok_s / then.tok_s:.2f}x"


def _share(measured: Measurement) -> str:
    share = measured.device_bandwidth_share
    return _number(None if share is None else share * 100, ".1f")


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _change(comparison: Comparison | None, metric: str) -> str:
    if comparison is None:
        return NOTHING
    moved = next((m for m in comparison.changes if m.metric == metric), None)
    return NOTHING if moved is None else f"{moved.change:+.1%}"


def _least(comparison: Comparison | None) -> str:
    least = None if comparison is None else comparison.minimum_detectable
    return NOTHING if least is None else f"{least:.1%}"


def reasons(report: Report) -> list[tuple[str, str, str]]:
    """(id, verdict, reason) of every row that has more to say than its figures."""
    quiet = {"SAME", "NOT_COMPARED", "NO_BASELINE"}
    told = []
    for result in report.results:
        comparison = comparison_of(report, result.id)
        verdict = comparison.verdict.value if comparison else result.status.value
        reason = comparison.reason if comparison else result.reason
        doubtful = comparison is not None and comparison.doubtful
        if reason and (doubtful or verdict not in quiet):
            told.append((result.id, verdict, reason))
    return told


def why(report: Report, row_id: str) -> tuple[str, ...]:
    """Which operators of a row that failed grew, and the command that repeats it."""
    comparison = comparison_of(report, row_id)
    if comparison is None or comparison.verdict not in _LOST:
        return ()
    if not report.again:
        return comparison.why
    again = shlex.join([*report.again, "--row", row_id])
    return (*comparison.why, f"again: {again}")


def summary(report: Report) -> str:
    """One line: how many rows, how many of each verdict, how many were not run."""
    counts = Counter(
        comparison.verdict.value if comparison else result.status.value
        for result in report.results
        for comparison in [comparison_of(report, result.id)]
    )
    not_run = sum(result.status is Status.NOT_RUN for result in report.results)
    ran = len(report.results) - not_run
    others = ", ".join(
        f"{count} {name}" for name, count in counts.items() if name != "NOT_RUN"
    )
    count = len(report.results)
    text = f"{count} {'row' if count == 1 else 'rows'}: {ran} run, {not_run} NOT_RUN"
    if others:
        text += f" ({others})"
    if (missed := report.selected - len(report.results)) > 0:
        text += f"; stopped before {missed} more"
    return text


def notes(report: Report) -> list[str]:
    """What a reader of the verdicts must know besides them, a line each."""
    environment = report.environment
    lines = [f"device: {environment.device_name} ({environment.device_key})"]
    if report.device_bandwidth_gb_s is not None:
        lines[0] += f", {report.device_bandwidth_gb_s:.1f} GB/s measured in this run"
    ceilings = [r.measurement.ceiling for r in report.results if r.measurement]
    launches = [each for each in ceilings if each is not None and each.launch_us]
    if launches:
        lines.append(f"ceiling of this run: {launches[0].told}")
    versions = f"torch {environment.torch}, torchao {environment.torchao}"
    lines.append(f"{versions}, python {environment.python}")
    weights = {r.measurement.weights for r in report.results if r.measurement}
    if weights:
        lines.append(f"weights: {', '.join(sorted(weights))}")
    for result in report.results:
        check = None if result.measurement is None else result.measurement.check
        if check is not None and check.ties:
            lines.append(
                f"ties in {result.id}: {check.ties} of {check.tokens} greedy tokens"
                f" differ from the {check.against}, each by less than the error"
            )
        lines += _fewer_samples(result)
        if result.measurement and result.measurement.injected_slowdown:
            share = result.measurement.injected_slowdown
            lines.append(f"injected slowdown of {share:.0%} in {result.id}")
        if result.measurement and result.row.upstream_issue:
            lines.append(
                f"works again: {result.id} is marked as broken by"
                f" {result.row.upstream_issue}, and ran"
            )
    lines += _of_cards(report)
    if report.baseline_source:
        lines.append(f"baseline: {report.baseline_source}")
    if report.environment_changes:
        changed = "; ".join(report.environment_changes)
        lines.append(f"changed since the baseline: {changed}")
    if report.stale:
        lines.append(f"in the baseline but in no set: {', '.join(report.stale)}")
    return lines


def _fewer_samples(result: RowResult) -> list[str]:
    """That a row took fewer samples than it asks for, where it did."""
    now, most = result.measurement, result.row.num_samples
    if now is None or now.samples_budget_s is None or len(now.sample_ns) >= most:
        return []
    return [
        f"{len(now.sample_ns)} of {most} samples in {result.id}: more would have taken"
        f" over {now.samples_budget_s:g} s"
    ]


def _of_cards(report: Report) -> list[str]:
    """Who else was on the card, what capped it, and what could not be read of it."""
    lines = []
    for result in report.results:
        now = result.measurement
        if now is None:
            continue
        if now.neighbours:
            others = ", ".join(now.neighbours)
            lines.append(f"on the card beside {result.id}: {others}")
        limits = dict.fromkeys(
            limit for state in now.card or () for limit in state.limited_by
        )
        if limits:
            lines.append(f"limited in {result.id}: {', '.join(limits)}")
    measured = [each.measurement for each in report.results if each.measurement]
    problems = {
        f"the card's state{' is not known' if now.card is None else ''}: {problem}"
        for now in measured
        if (problem := now.card_problem)
    }
    return lines + sorted(problems)
