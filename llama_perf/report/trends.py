"""The trends of histories as text, markdown, CSV, JSON and HTML."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import groupby, pairwise
from statistics import median

from llama_perf.metric import Metric
from llama_perf.metrics import PEAK_MEMORY, TOK_S
from llama_perf.report import report_format
from llama_perf.report.columns import ALL, NOTHING, Column, Layout, cells_of, that_fit
from llama_perf.report.flat import as_csv_text, as_json_lines
from llama_perf.report.table import short_names, table_of
from llama_perf.results.history import HistoryLine
from llama_perf.results.trends import ChangePoint, Trend, Trends
from llama_perf.strict_json import to_json
from llama_perf.words import counted

BLOCKS = "▁▂▃▄▅▆▇█"
IN_ASCII = str.maketrans(BLOCKS, "_.,-~=+#")
"""What `str.translate` makes of a curve where an encoding lacks its blocks."""
# Of a curve: its characters, and the logarithms that its height covers at least.
_CURVE, _LEAST_SPAN = 20, 0.05
_BY_IMPORTANCE = (
    *("tok/s", "change", "trend", "median", "first", "runs"),
    *("peak", "peak-change", "closeness"),
)
METRICS = {metric.title: metric for metric in (TOK_S, PEAK_MEMORY)}

report_format("json", ".json", of=Trends)(to_json)


@report_format("text", ".txt", of=Trends, has_columns=True)
def as_text(trends: Trends, layout: Layout = ALL) -> str:
    """A table for each device, its rows' change points below, and the notes."""
    parts = []
    for device_key, rows in _by_device(trends):
        caption, table = _table(rows, trends.last, "simple", layout)
        parts += [
            device_key,
            *([f"every row: {caption}"] if caption else []),
            table,
            "",
        ]
        parts += [change_in_words(*one) for one in _newest(rows)]
    return "\n".join([*parts, *_notes(trends)]) + "\n"


@report_format("markdown", ".md", of=Trends, has_columns=True)
def as_markdown(trends: Trends, layout: Layout = ALL) -> str:
    """The same as GitHub shows it."""
    parts = []
    for device_key, rows in _by_device(trends):
        caption, table = _table(rows, trends.last, "github", layout)
        parts += [f"### Trends on {device_key}", ""]
        parts += [f"Every row: `{caption}`", ""] if caption else []
        parts += [table, ""]
        parts += [f"- {change_in_words(*one)}" for one in _newest(rows)]
    return "\n".join([*parts, *(f"- {note}" for note in _notes(trends))]) + "\n"


@report_format("jsonl", ".jsonl", of=Trends)
def as_jsonl(trends: Trends) -> str:
    """An object for each row and run; null stands for a figure that is not known."""
    return as_json_lines(_flat_lines(trends))


@report_format("csv", ".csv", of=Trends)
def as_csv(trends: Trends) -> str:
    """A line for each row and run; an empty cell stands for what is not known."""
    names = ["device_key", *_FIELDS, *_CHANGES.values()]
    return as_csv_text(names, _flat_lines(trends))


# All but those that say what kind of line it is.
_FIELDS = [field.name for field in fields(HistoryLine)][2:]
_CHANGES = {TOK_S.title: "tok_s_change", PEAK_MEMORY.title: "peak_memory_change"}


def _flat_lines(trends: Trends) -> Iterator[dict[str, object]]:
    """The fields of each line, and the changes that began in its run, as shares."""
    for trend in trends.rows:
        began = {(one.after.started, one.metric): one.change for one in trend.changes}
        for line in trend.lines:
            flat = {name: getattr(line, name) for name in _FIELDS}
            flat["verdict"] = None if line.verdict is None else line.verdict.value
            for title, name in _CHANGES.items():
                flat[name] = began.get((line.started, title))
            yield {"device_key": trend.device_key, **flat}


@report_format("html", ".html", of=Trends, needs=("vl_convert",))
def as_html(trends: Trends) -> str:
    """A page: a table of the rows, and a chart for each."""
    from llama_perf.report.html.trends import as_page

    return as_page(trends, _notes(trends))


def change_in_words(trend: Trend, change: ChangePoint) -> str:
    """A change point in one line: the row, its levels, and the two runs."""
    metric = METRICS[change.metric]
    levels = f"{metric.shown(change.old)} -> {metric.shown(change.new)}"
    where = "".join(f"; {one}" for one in change.environment)
    return (
        f"{trend.id}: {change.metric} {levels} ({change.change:+.1%},"
        f" {counted(change.runs, 'run')} since) between {change.before.summary} and"
        f" {change.after.summary}{where}"
    )


def curve(values: Sequence[float]) -> str:
    """The values as a line of blocks, each the median of some that follow each other.

    The curve is as high as the values differ, by 5 % at least: noise looks like noise.
    """
    if not values:
        return NOTHING
    count = min(len(values), _CURVE)
    edges = [len(values) * number // count for number in range(count + 1)]
    logs = [
        math.log(median(values[start:end]) or 1e-9) for start, end in pairwise(edges)
    ]
    span = max(max(logs) - min(logs), _LEAST_SPAN)
    least = (min(logs) + max(logs) - span) / 2
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((one - least) / span * top)] for one in logs)


def columns_of(rows: Sequence[Trend], names: Sequence[str], last: int) -> list[Column]:
    """The columns of a table of trends."""
    calm = [trend.calm or trend.lines for trend in rows]
    speeds = [[line.tok_s for line in lines] for lines in calm]
    peaks = (lines[-1].peak_memory_bytes for lines in calm)
    middle = (median(own[-last:]) for own in speeds)
    ratios = (own[-1] / own[0] - 1 for own in speeds)
    every: tuple[tuple[str, str, Iterable[str]], ...] = (
        ("row", "row", names),
        ("runs", "runs", (str(len(trend.lines)) for trend in rows)),
        ("tok/s", "tok/s", (f"{own[-1]:.2f}" for own in speeds)),
        ("median", f"median of {last}", map("{:.2f}".format, middle)),
        ("first", "since the first", map("{:+.1%}".format, ratios)),
        ("change", "last change", (_last_change(one, TOK_S) for one in rows)),
        ("peak", "peak GB", (f"{peak / 1e9:.2f}" for peak in peaks)),
        (
            "peak-change",
            "last change",
            (_last_change(one, PEAK_MEMORY) for one in rows),
        ),
        *_closeness(calm),
        ("trend", f"tok/s, last {last}", (curve(own[-last:]) for own in speeds)),
    )
    return [Column(name, header, list(cells)) for name, header, cells in every]


def _closeness(
    rows: Sequence[Sequence[HistoryLine]],
) -> Iterator[tuple[str, str, Iterable[str]]]:
    """The column of the last closeness over a text, if any row has one."""
    known = [
        [line.text_closeness_db for line in lines if line.text_closeness_db is not None]
        for lines in rows
    ]
    if any(known):
        last = [own[-1] if own else None for own in known]
        yield "closeness", "closeness dB", cells_of(last, "{:.1f}")


def _last_change(trend: Trend, metric: Metric) -> str:
    change = trend.newest(metric)
    if change is None:
        return NOTHING
    return f"{change.change:+.1%}, {counted(change.runs, 'run')} ago"


def _table(
    rows: Sequence[Trend], last: int, style: str, layout: Layout
) -> tuple[str, str]:
    """The part of the id that all rows share, and the table in tabulate's `style`."""
    names, common = short_names([trend.id for trend in rows])
    every = columns_of(rows, names, last)
    chosen = that_fit(every, every[0], _BY_IMPORTANCE, layout.width)
    return common, table_of(chosen, style, layout.width)


def _by_device(trends: Trends) -> Iterator[tuple[str, list[Trend]]]:
    for device_key, rows in groupby(trends.rows, lambda trend: trend.device_key):
        yield device_key, list(rows)


def _newest(rows: Sequence[Trend]) -> Iterator[tuple[Trend, ChangePoint]]:
    """The last change point of each row and metric."""
    for trend in rows:
        for metric in METRICS.values():
            if (change := trend.newest(metric)) is not None:
                yield trend, change


def _notes(trends: Trends) -> list[str]:
    disturbed = sum(len(one.lines) - len(one.calm) for one in trends.rows)
    notes = [trends.note] if trends.note else []
    if disturbed:
        were = "was" if disturbed == 1 else "were"
        notes.append(
            f"{counted(disturbed, 'figure')} {were} disturbed and left out of medians,"
            " curves and change points"
        )
    return notes
