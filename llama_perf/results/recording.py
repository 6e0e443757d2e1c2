"""What was recorded of some rows, in whichever document it stands.

That is the results of a run, a baseline, or a save of pytest-benchmark with records of
ours. Knows the documents, and nothing of the meaning of their figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llama_perf.errors import RecordError
from llama_perf.file_kinds import described, described_text
from llama_perf.files import read_text
from llama_perf.results import baselines
from llama_perf.results.baselines import Baseline, BaselineRow
from llama_perf.results.processes import deviation
from llama_perf.results.run import Report, RowResult, parse_report
from llama_perf.strict_json import parse_json

SECTION = "llama_perf"
"""Where a save of pytest-benchmark has our records."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """The rows of one document: those that were measured, and how the others ended.

    `source` is what the user called the document, `note` what it says of itself.
    """

    source: str
    measured: Baseline
    undone: Mapping[str, RowResult]
    note: str | None = None

    @property
    def rows(self) -> dict[str, BaselineRow]:
        """The measured rows by id."""
        return {row.id: row for row in self.measured.rows}

    def results(self) -> dict[str, RowResult]:
        """How each row ended, by id."""
        ended = {row.id: row.result for row in self.measured.rows}
        return ended | dict(self.undone)


def read(path: Path) -> Recording:
    """Read any of the documents; raises RecordError that names the file and why."""
    return parse(read_text(path, error=RecordError), source=str(path))


def parse(text: str, *, source: str) -> Recording:
    """Read any of the documents from text, as `read` does."""
    try:
        document = parse_json(text, source=source)
    except RecordError:
        if (what := described_text(text)) is None:
            raise
        raise RecordError(f"{source}: {what}") from None
    fields = document if isinstance(document, dict) else {}
    kind = fields.get("kind")
    if kind == "llama-perf report":
        return of_report(parse_report(text, source=source), source=source)
    if kind == "llama-perf baseline":
        return of_baseline(baselines.parse(text, source=source), source=source)
    if "benchmarks" in fields:
        return of_baseline(of_save(fields, source=source), source=source)
    allowed = "the results of a run, a baseline, a save of pytest-benchmark"
    what = described(fields) or f"it is none of the kinds that can be read: {allowed}"
    raise RecordError(f"{source}: {what}")


def of_save(document: Mapping[str, object], *, source: str) -> Baseline:
    """The records in a save of pytest-benchmark; raises RecordError."""
    section = document.get(SECTION)
    if section is None:
        raise RecordError(
            f"{source}: it holds no llama-perf records; save one with"
            " pytest tests/perf --benchmark-save=NAME"
        )
    return baselines.from_section(section, source=source)


def of_baseline(baseline: Baseline, *, source: str) -> Recording:
    """A baseline's rows, which all were measured."""
    return Recording(source=source, measured=baseline, undone={}, note=baseline.note)


def of_report(report: Report, *, source: str) -> Recording:
    """The rows of a run: where fresh processes decided on one, those are its figures.

    The processes of pairs are no figures of the row: two models share the machine.
    """
    stored = baselines.of_report(report)
    fresh = {
        comparison.id: comparison.processes
        for comparison in report.comparisons
        if comparison.processes and comparison.pairs is None
    }
    rows = tuple(
        replace(
            row,
            processes=processes,
            between_process_deviation=deviation(processes),
            # The processes of the unquantized row were others: no ratio to them.
            recorded=f"in fresh processes of {row.id}",
        )
        if (processes := fresh.get(row.id))
        else row
        for row in stored.rows
    )
    return Recording(
        source=source,
        measured=replace(stored, rows=rows),
        undone={
            result.id: result for result in report.results if result.measurement is None
        },
        note=report.note,
    )
