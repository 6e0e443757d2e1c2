"""The lines below the table of a report: reasons, notes and the summary."""

import shlex
from collections import Counter
from itertools import chain

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
        quiet = verdict in _QUIET and not (comparison and comparison.doubtful)
        if reason and not quiet:
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
    verdicts = Counter(
        outcome(result, comparison_of(report, result.id)) for result in report.results
    )
    count = len(report.results)
    not_run = sum(result.status is Status.NOT_RUN for result in report.results)
    del verdicts[Status.NOT_RUN.value]
    text = f"{count} {'row' if count == 1 else 'rows'}: {count - not_run} run,"
    text += f" {not_run} NOT_RUN"
    if verdicts:
        counted = (f"{number} {verdict}" for verdict, number in verdicts.items())
        text += f" ({', '.join(counted)})"
    if (missed := report.selected - count) > 0:
        text += f"; stopped before {missed} more"
    return text


def notes(report: Report) -> list[str]:
    """The facts a reader needs to judge the verdicts, one a line."""
    environment = report.environment
    figures = {
        result.id: result.measurement for result in report.results if result.measurement
    }
    device = f"device: {environment.device_name} ({environment.device_key})"
    if report.device_bandwidth_gb_s is not None:
        device += f", {report.device_bandwidth_gb_s:.1f} GB/s measured in this run"
    lines = [device]
    ceilings = (measurement.ceiling for measurement in figures.values())
    if ceiling := next((one for one in ceilings if one and one.launch_us), None):
        lines.append(f"ceiling of this run: {ceiling.summary}")
    lines.append(
        f"torch {environment.torch}, torchao {environment.torchao},"
        f" python {environment.python}"
    )
    if weights := sorted({measurement.weights for measurement in figures.values()}):
        lines.append(f"weights: {', '.join(weights)}")
    for result in report.results:
        if result.measurement is not None:
            lines += _notes_on_row(result, result.measurement)
    for row_id, measurement in figures.items():
        lines += _notes_on_gpu(row_id, measurement)
    lines += sorted(set(map(_gpu_problem, figures.values())) - {""})
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
    states = measurement.card or ()
    if limits := dict.fromkeys(chain(*(state.limited_by for state in states))):
        lines.append(f"clock limited in {row_id}: {', '.join(limits)}")
    return lines


def _gpu_problem(measurement: Measurement) -> str:
    """What could not be read of the GPU; empty if nothing."""
    unknown = "" if measurement.card is not None else " is not known"
    problem = measurement.card_problem
    return f"the GPU's state{unknown}: {problem}" if problem else ""
