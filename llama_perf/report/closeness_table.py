"""The closeness of rows as text, markdown, CSV, JSON and JSON Lines."""

from collections.abc import Iterator

from tabulate import tabulate

from llama_perf.report import report_format
from llama_perf.report.columns import NOTHING
from llama_perf.report.flat import as_csv_text, as_json_lines
from llama_perf.report.table import in_cells, row_names
from llama_perf.results.closeness_report import ClosenessReport, ClosenessResult
from llama_perf.results.measurement import Closeness
from llama_perf.results.run import Comparison, Status, Verdict
from llama_perf.strict_json import to_json
from llama_perf.words import counted

_HEADERS = (
    *("row", "dB", "KL nats", "top-1 %", "perplexity", "twin's", "greedy tokens"),
    *("seconds", "verdict"),
)
_FIGURES = tuple(Closeness.__dataclass_fields__)
_FIELDS = (
    *("id", "name", "model", "device", "dtype", "status", "verdict", "failed"),
    *("reason", "weights", *_FIGURES),
)

report_format("json", ".json", of=ClosenessReport)(to_json)


def shown(result: ClosenessResult, comparison: Comparison) -> tuple[str, str, str]:
    """The figures of a row that ended, its verdict, and the verdict's colour."""
    style = "red" if comparison.failed else "yellow"
    if result.closeness is None:
        return "", f"{comparison.verdict.value}: {comparison.reason}", style
    if comparison.verdict is Verdict.NOT_COMPARED:
        return result.summary, "", ""
    style = "green" if comparison.verdict is Verdict.SAME else style
    return result.summary, comparison.verdict.value, style


@report_format("text", ".txt", of=ClosenessReport)
def as_text(report: ClosenessReport) -> str:
    """The table, the reasons and the summary line."""
    common, table = _table(report, "simple")
    lines = [f"every row: {common}"] if common else []
    lines += [table, ""]
    lines += [f"{verdict} {row}: {why}" for row, verdict, why in _reasons(report)]
    return "\n".join([*lines, *_notes(report), _summary(report)]) + "\n"


@report_format("markdown", ".md", of=ClosenessReport)
def as_markdown(report: ClosenessReport) -> str:
    """The same as GitHub shows it."""
    common, table = _table(report, "github")
    lines = [f"### llama-perf closeness: {_summary(report)}", ""]
    lines += [f"Every row: `{common}`", ""] if common else []
    lines += [table, ""]
    lines += [
        f"- **{verdict}** `{row}`: {why}" for row, verdict, why in _reasons(report)
    ]
    return "\n".join([*lines, *(f"- {note}" for note in _notes(report))]) + "\n"


@report_format("csv", ".csv", of=ClosenessReport)
def as_csv(report: ClosenessReport) -> str:
    """One line for each row; an empty cell for what is not known."""
    return as_csv_text(_FIELDS, _flat(report))


@report_format("jsonl", ".jsonl", of=ClosenessReport)
def as_jsonl(report: ClosenessReport) -> str:
    """One line for each row; null stands for what is not known."""
    return as_json_lines(_flat(report))


def _table(report: ClosenessReport, style: str) -> tuple[str, str]:
    names, common = row_names([result.row for result in report.results])
    lines = []
    for name, (result, comparison) in zip(names, report.judged, strict=True):
        ended: Status | Verdict = result.status
        if comparison is not None and comparison.verdict is not Verdict.NOT_COMPARED:
            ended = comparison.verdict
        cells = [NOTHING] * 7
        if (now := result.closeness) is not None:
            cells = [
                f"{now.db:.1f}",
                f"{now.kl_nats:.2g}",
                f"{now.top1_share:.1%}".removesuffix("%"),
                f"{now.perplexity:.2f}",
                f"{now.twin_perplexity:.2f}",
                f"{now.same_greedy_tokens} of {now.greedy_tokens}",
                f"{now.seconds:.0f}",
            ]
        lines.append([name, *cells, ended.value])
    aligned = ["left", *["right"] * 7, "left"]
    table = tabulate(
        in_cells(lines, style),
        headers=_HEADERS,
        tablefmt=style,
        disable_numparse=True,
        colalign=aligned if lines else None,
    )
    return common, table


def _reasons(report: ClosenessReport) -> Iterator[tuple[str, str, str]]:
    """Why each row has no figures, or has the verdict that it has."""
    for result, comparison in report.judged:
        if comparison is None:
            continue
        silent = comparison.verdict in {Verdict.SAME, Verdict.NOT_COMPARED}
        if not silent:
            yield result.id, comparison.verdict.value, comparison.reason


def _notes(report: ClosenessReport) -> Iterator[str]:
    texts: dict[tuple[str, int], int] = {}
    for result in report.results:
        if (now := result.closeness) is not None:
            key = now.text, now.tokens
            texts[key] = texts.get(key, 0) + 1
    for (text, tokens), rows in texts.items():
        words = f"{counted(tokens, 'token')}, read by {counted(rows, 'row')}"
        yield f"text: {text}, {words}"
    if report.left_out:
        yield f"left out: {counted(report.left_out, 'row')} with nothing quantized"
    if report.baseline_source is not None:
        yield f"baseline: {report.baseline_source}"
    where = report.environment
    yield f"{where.device_name}, torch {where.torch}, torchao {where.torchao}"


def _summary(report: ClosenessReport) -> str:
    ended = [result for result in report.results if result.closeness is not None]
    words = [f"{len(ended)} of {counted(report.selected, 'row')} compared"]
    failed = sum(comparison.failed for comparison in report.comparisons)
    return ", ".join([*words, f"{failed} failed"])


def _flat(report: ClosenessReport) -> Iterator[dict[str, object]]:
    for result, comparison in report.judged:
        reason = result.reason if comparison is None else comparison.reason
        line: dict[str, object] = {
            "id": result.id,
            "name": result.row.name,
            "model": result.row.model,
            "device": result.row.device,
            "dtype": result.row.dtype,
            "status": result.status.value,
            "verdict": None if comparison is None else comparison.verdict.value,
            "failed": None if comparison is None else comparison.failed,
            "reason": reason,
            "weights": result.weights,
        }
        yield line | {name: getattr(result.closeness, name, None) for name in _FIGURES}
