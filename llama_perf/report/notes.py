"""The lines below the table of a report: reasons, notes and the summary."""

import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import chain, starmap

from llama_perf.report.closeness_notes import closeness_notes
from llama_perf.report.columns import DISTURBED, outcome
from llama_perf.report.ranks_notes import ranks_notes
from llama_perf.results.disturbance import disturbance
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report, RowResult, Status, Verdict
from llama_perf.rows.schemes import is_config
from llama_perf.words import counted

_LOST = {Verdict.SLOWER, Verdict.LARGER, Verdict.WORSE, Verdict.UNDECIDED}
# Twice what two neighbouring generations of a steady row may differ by.
_LARGE_TREND = 0.2
_QUIET = {"SAME", "NOT_COMPARED", "NO_BASELINE"}


def reasons(report: Report) -> Iterator[tuple[str, str, str, list[str]]]:
    """(id, verdict, reason, why) of every row whose figures do not say everything.

    `why` has a failed row's operators that grew and the command that runs it again.
    """
    for result, comparison in report.judged:
        verdict = outcome(result, comparison)
        reason = comparison.reason if comparison else result.reason
        quiet = verdict in _QUIET and not (comparison and comparison.doubtful)
        # It may have looked faster.
        if comparison and comparison.verdict is Verdict.SAME:
            quiet = quiet and not disturbance(result, comparison)
        why: list[str] = []
        if comparison and comparison.verdict in _LOST:
            why += comparison.why
            if (command := again(report, result.id)) is not None:
                why.append(f"again: {command}")
        if reason and not quiet:
            yield result.id, verdict, reason, why


def again(report: Report, row_id: str) -> str | None:
    """The command that runs a row of the report again, None where it is not known."""
    return shlex.join([*report.again, "--row", row_id]) if report.again else None


def summary(report: Report) -> str:
    """One line that counts the rows by verdict, and those that were not run."""
    verdicts = Counter(starmap(outcome, report.judged))
    count = len(report.results)
    not_run = sum(result.status is Status.NOT_RUN for result in report.results)
    del verdicts[Status.NOT_RUN.value]
    text = f"{counted(count, 'row')}: {count - not_run} run,"
    text += f" {not_run} NOT_RUN"
    if verdicts:
        numbers = (f"{number} {verdict}" for verdict, number in verdicts.items())
        text += f" ({', '.join(numbers)})"
    if (missed := report.selected - count) > 0:
        text += f"; stopped before {missed} more"
    return text


def notes(report: Report) -> Iterator[str]:
    """The facts a reader needs to judge the verdicts, one a line."""
    environment = report.environment
    measured = [
        (result, result.measurement) for result in report.results if result.measurement
    ]
    figures = [measurement for _, measurement in measured]
    if report.note:
        yield f"note: {report.note}"
    device = f"device: {environment.device_name} ({environment.device_key})"
    if report.device_bandwidth_gb_s is not None:
        device += f", {report.device_bandwidth_gb_s:.1f} GB/s measured in this run"
    yield device
    ceilings = (measurement.ceiling for measurement in figures)
    if ceiling := next((one for one in ceilings if one and one.launch_us), None):
        yield f"ceiling of this run: {ceiling.summary}"
    versions = (
        f"{name} {version}"
        for name in ("torch", "torchao", "python")
        if (version := getattr(environment, name)) is not None
    )
    yield ", ".join(versions) or "versions of its libraries: not known"
    if weights := sorted({measurement.weights for measurement in figures}):
        yield f"weights: {', '.join(weights)}"
    told = {note for measurement in figures for note in measurement.weights_notes or ()}
    for note in sorted(told):
        yield f"note on the weights: {note}"
    yield from ranks_notes(figures)
    if compiled := [one.compile_s for one in figures if one.compile_s is not None]:
        count = counted(len(compiled), "row")
        yield f"compiled anew: {count}, in {sum(compiled):.0f} s"
    for result, comparison in report.judged:
        if words := disturbance(result, comparison):
            yield f"disturbed ({DISTURBED}): {result.id}: {words}"
    yield from closeness_notes(report.comparisons)
    for result in report.results:
        if result.row.title is not None:
            yield f"row {result.row.title}: {result.id}"
    rows = [result.row for result in report.results]
    configs = [row for row in rows if is_config(row.quantization)]
    for scheme in dict.fromkeys(f"{row.scheme}: {row.quantization}" for row in configs):
        yield f"scheme {scheme}"
    yield from chain(*starmap(_notes_on_row, measured))
    yield from chain(*starmap(_notes_on_gpu, measured))
    yield from sorted(set(map(_gpu_problem, figures)) - {""})
    if report.baseline_source:
        yield f"baseline: {report.baseline_source}"
    if report.overall:
        yield f"overall: {report.overall}"
    if report.environment_changes:
        yield f"changed since the baseline: {'; '.join(report.environment_changes)}"
    if report.stale:
        stale = ", ".join(report.stale)
        yield f"in the baseline but in no set or --rows file: {stale}"


def _notes_on_row(result: RowResult, measurement: Measurement) -> Iterator[str]:
    check = measurement.check
    if check is not None and check.ties:
        yield (
            f"ties in {result.id}: at {check.ties} of"
            f" {counted(check.tokens, 'position')} the greedy token is another one than"
            f" by the {check.against}, by less than the error"
        )
    taken, wanted = len(measurement.sample_ns), result.row.num_samples
    budget = measurement.samples_budget_s
    if budget is not None and taken < wanted:
        yield (
            f"{taken} of {wanted} samples in {result.id}: more would have taken"
            f" over {budget:g} s"
        )
    trend = measurement.trend
    if trend is not None and abs(trend) > _LARGE_TREND:
        yield (
            f"not steady: {result.id}, whose first sample took {abs(trend):.0%}"
            f" {'more' if trend > 0 else 'less'} time than the others' median, after"
            f" {counted(measurement.warm_ups or 1, 'warm-up')}"
        )
    if share := measurement.injected_slowdown:
        text = f"injected slowdown of {share * 100:g}% in {result.id}"
        if measurement.repeated_steps is not None:
            steps = counted(measurement.decode_steps or 0, "decode step")
            text += f": {counted(measurement.repeated_steps, 'repeat')} in {steps}"
        yield text
    if issue := result.row.upstream_issue:
        yield f"works again: {result.id} is marked as broken by {issue}, and ran"


def _notes_on_gpu(result: RowResult, measurement: Measurement) -> Iterator[str]:
    states = measurement.card or ()
    if limits := dict.fromkeys(chain(*(state.limited_by for state in states))):
        yield f"clock limited in {result.id}: {', '.join(limits)}"


def _gpu_problem(measurement: Measurement) -> str:
    """What could not be read of the GPU; empty if nothing."""
    unknown = "" if measurement.card is not None else " is not known"
    problem = measurement.card_problem
    return f"the GPU's state{unknown}: {problem}" if problem else ""
