"""The closeness of rows that was measured without their speed: one run's results."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from llama_perf.errors import RecordError
from llama_perf.results.measurement import Closeness
from llama_perf.results.run import Comparison, Environment, Report, RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import read_json, record
from llama_perf.words import counted


@record
class ClosenessResult:
    """How a row ended; `weights` are those it was compared with, `reason` why not."""

    id: str
    row: RowSpec
    status: Status
    reason: str | None = None
    weights: str | None = None
    closeness: Closeness | None = None

    @property
    def summary(self) -> str:
        """How it ended, in a few words."""
        if self.closeness is None:
            return f"{self.status.value}: {self.reason}"
        return f"{self.closeness.db:.1f} dB"

    @property
    def as_row_result(self) -> RowResult:
        """The same of a row without figures, for who judges rows."""
        return RowResult(
            id=self.id, row=self.row, status=self.status, reason=self.reason
        )


def joined(result: RowResult, compared: ClosenessResult) -> RowResult:
    """A measured row with its closeness; one that broke over it is INVALID.

    A row that has no twin here keeps the figures that it has.
    """
    if compared.status is Status.INVALID:
        about = str(compared.reason).removeprefix("closeness: ")
        return replace(compared.as_row_result, reason=f"closeness: {about}")
    figures = result.measurement
    assert figures is not None, "a row that was measured"
    return replace(result, measurement=replace(figures, closeness=compared.closeness))


@record
class ClosenessReport:
    """The results of one run and, if it was compared with a baseline, the verdicts.

    `selected` counts the rows that were to be compared, `left_out` those of which
    nothing is quantized. `text` names the text that was asked for, `tokens` how many of
    it, None for the default.
    """

    kind: Literal["llama-perf closeness"] = "llama-perf closeness"
    schema_version: Literal[1] = 1
    started: str
    environment: Environment
    text: str
    tokens: int | None = None
    selected: int = 0
    left_out: int = 0
    results: tuple[ClosenessResult, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    baseline_source: str | None = None

    @property
    def failed(self) -> bool:
        """Whether any row failed."""
        return any(comparison.failed for comparison in self.comparisons)

    @property
    def judged(self) -> list[tuple[ClosenessResult, Comparison | None]]:
        """Each result with its verdict, None where there is none yet."""
        verdicts = {comparison.id: comparison for comparison in self.comparisons}
        return [(result, verdicts.get(result.id)) for result in self.results]


def read_closeness(path: Path) -> ClosenessReport:
    """Read such results; raises RecordError that names the file and the field."""
    return read_json(ClosenessReport, path)


def check_addable(report: Report, environment: Environment, *, source: str) -> None:
    """Raise RecordError unless the speeds of a run were measured where closeness is."""
    if changed := report.environment.changes(environment, commit=True):
        raise RecordError(f"add-to: {source} is of another run: {'; '.join(changed)}")


def added(report: Report, closeness: ClosenessReport) -> tuple[Report, str]:
    """The results of a run with closeness in its rows, and in words what was added.

    Rows that are other ones there, or read other weights, stay as they are.
    """
    known = {
        result.id: result
        for result in closeness.results
        if result.closeness is not None
    }
    results, count = [], 0
    for result in report.results:
        new, figures = known.get(result.id), result.measurement
        if (
            new is not None
            and figures is not None
            and figures.weights == new.weights
            and result.row.fingerprint == new.row.fingerprint
        ):
            figures = replace(figures, closeness=new.closeness)
            result, count = replace(result, measurement=figures), count + 1
        results.append(result)
    words = f"{count} of {counted(len(known), 'row')} added"
    return replace(report, results=tuple(results)), words
