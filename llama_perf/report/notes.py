"""The lines below the table of a report: reasons, notes and the summary."""

from __future__ import annotations

import shlex
from collections import Counter

from llama_perf.report.table import comparison_of, outcome
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report, RowResult, Status
from llama_perf.results.verdict import Verdict

_LOST = {Verdict.SLOWER, Verdict.LARGER, Verdict.UNDECIDED}
_QUIET = {"SAME", "NOT_COMPARED", "NO_BASELINE"}


def reasons(report: Report) -> list[tuple[str, str, str]]:
    """(id, verdict, reason) of every row whose figures do not say everything."""
    lines = []
    for result in report.results:
        comparison = comparison_of(report, result.id)
        verdict = outcome(result, comparison)
        reason = comparison.reason if comparison else result.reason
        doubtful = comparison is not None and comparison.doubtful
        if reason and (doubtful or verdict not in _QUIET):
            lines.append((result.id, verdict, reason))
    return lines


def why(report: Report, row_id: str) -> tuple[str, ...]:
    """Of a failed row: the operators that grew and the command that runs it again."""
    comparison = comparison_of(report, row_id)
    if comparison is None or comparison.verdict not in _LOST:
        return ()
    if not report.again:
        return comparison.why
    again = shlex.join([*report.again, "--row", row_id])
    return (*comparison.why, f"again: {again}")


def summary(report: Report) -> str:
    """One line that counts the rows by verdict, and those that were not run."""
    counts = Counter(
        outcome(result, comparison_of(report, result.id)) for result in report.results
    )
    count = len(report.results)
    not_run = sum(result.status is Status.NOT_RUN for result in report.results)
    verdicts = ", ".join(
        f"{number} {verdict}"
        for verdict, number in counts.items()
        if verdict != Status.NOT_RUN.value
    )
    text = f"{count} {'row' if count == 1 else 'rows'}: {count - not_run} run,"
    text += f" {not_run} NOT_RUN"
    if verdicts:
        text += f" ({verdicts})"
    if (missed := report.selected - count) > 0:
        text += f"; stopped before {missed} more"
    return text


def notes(report: Report) -> list[str]:
    """The facts a reader needs to judge the verdicts, one a line."""
    environment = report.environment
    measured = [
        (result, result.measurement)
        for result in report.results
        if result.measurement is not None
    ]
    lines = [f"device: {environment.device_name} ({environment.device_key})"]
    if report.device_bandwidth_gb_s is not None:
        lines[0] += f", {report.device_bandwidth_gb_s:.1f} GB/s measured in this run"
    ceilings = (measurement.ceiling for _, measurement in measured)
    if ceiling := next((one for one in ceilings if one and one.launch_us), None):
        lines.append(f"ceiling of this run: {ceiling.summary}")
    lines.append(
        f"torch {environment.torch}, torchao {environment.torchao},"
        f" python {environment.python}"
    )
    if weights := sorted({measurement.weights for _, measurement in measured}):
        lines.append(f"weights: {', '.join(weights)}")
    for result, measurement in measured:
        lines += _notes_on_row(result, measurement)
    for result, measurement in measured:
        lines += _notes_on_gpu(result.id, measurement)
    lines += _gpu_problems([measurement for _, measurement in measured])
    if report.baseline_source:
        lines.append(f"baseline: {report.baseline_source}")
    if report.environment_changes:
        changes = "; ".join(report.environment_changes)
        lines.append(f"changed since the baseline: {changes}")
    if report.stale:
        lines.append(f"in the baseline but in no set: {', '.join(report.stale)}")
    return lines


def _notes_on_row(result: RowResult, measurement: Measurement) -> list[str]:
    lines = []
    check = measurement.check
    if check is not None and check.ties:
        lines.append(
            f"ties in {result.id}: {check.ties} of {check.tokens} greedy tokens"
            f" differ from the {check.against}, each by less than the error"
        )
    taken, wanted = len(measurement.sample_ns), result.row.num_samples
    budget = measurement.samples_budget_s
    if budget is not None and taken < wanted:
        lines.append(
            f"{taken} of {wanted} samples in {result.id}: more would have taken"
            f" over {budget:g} s"
        )
    if share := measurement.injected_slowdown:
        lines.append(f"injected slowdown of {share:.0%} in {result.id}")
    if issue := result.row.upstream_issue:
        lines.append(
            f"works again: {result.id} is marked as broken by {issue}, and ran"
        )
    return lines


def _notes_on_gpu(row_id: str, measurement: Measurement) -> list[str]:
    """Other processes on the GPU, and the limits that lowered its clock."""
    lines = []
    if measurement.neighbours:
        others = ", ".join(measurement.neighbours)
        lines.append(f"other processes on the GPU in {row_id}: {others}")
    limits = dict.fromkeys(
        limit for state in measurement.card or () for limit in state.limited_by
    )
    if limits:
        lines.append(f"clock limited in {row_id}: {', '.join(limits)}")
    return lines


def _gpu_problems(measurements: list[Measurement]) -> list[str]:
    """What could not be read of the GPU, each once."""
    problems = set()
    for measurement in measurements:
        if measurement.card_problem:
            unknown = "" if measurement.card is not None else " is not known"
            problems.add(f"the GPU's state{unknown}: {measurement.card_problem}")
    return sorted(problems)
