"""The tables of a comparison of recordings, cell by cell; a letter names each of them.

Knows the comparison as it is stored; judges nothing.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from llama_perf.errors import SpecError
from llama_perf.metric import Metric, Rule
from llama_perf.metrics import METRICS, PEAK_MEMORY, TOK_S
from llama_perf.report.closeness_notes import closeness_notes
from llama_perf.report.columns import DISTURBED, NOTHING, Column, that_fit
from llama_perf.report.table import row_names
from llama_perf.results.diff import Diff, DiffMetric, DiffRow
from llama_perf.results.run import Status
from llama_perf.words import counted

ALL = "all"
METRIC_NAMES = tuple(metric.name for metric in METRICS)
"""What `--metric` may name, beside `all`."""
# Those that the first table always has.
_ALWAYS = {TOK_S.title, PEAK_MEMORY.title}


def parse_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The titles of the metrics that `--metric` names; raises SpecError."""
    if ALL in names:
        return tuple(metric.title for metric in METRICS)
    titles = {metric.name: metric.title for metric in METRICS}
    for name in names:
        if name not in titles:
            allowed = f"allowed: {ALL}, {', '.join(titles)}"
            raise SpecError("metric", name, allowed, known=titles)
    return tuple(titles[name] for name in dict.fromkeys(names))


def letters(diff: Diff) -> list[str]:
    """What the recordings are called in a table: A, B, and so on."""
    count = len(diff.sides)
    if count <= len(ascii_uppercase):
        return list(ascii_uppercase[:count])
    return [str(number) for number in range(1, count + 1)]


def names_of(diff: Diff) -> tuple[list[str], str]:
    """What the rows are called beside one another, and what all ids share."""
    return row_names([row.row for row in diff.rows])


def columns(diff: Diff, names: Sequence[str]) -> Iterator[Column]:
    """The columns of the table of speed and memory, a line for each row."""
    yield Column("row", "row", names)
    yield from _of_metric(diff, TOK_S)
    speeds = [row.speed for row in diff.rows]
    if any(speed and speed.metric != TOK_S.title for speed in speeds):
        cells = [f"{speed.change:+.1%}" if speed else NOTHING for speed in speeds]
        yield Column("ratio-change", "ratio change", cells)
    yield Column("limit", "limit", [limit_of(row) for row in diff.rows])
    yield from _of_metric(diff, PEAK_MEMORY)
    yield Column("verdict", "verdict", [verdict_of(row) for row in diff.rows])


# What a table keeps longest that has to fit, by the beginnings of the names.
_BY_IMPORTANCE = (
    *("row", "verdict", "tok/s-change", "tok/s", "ratio-change", "limit"),
    *("peak-change", "peak"),
)


def fitting(chosen: Sequence[Column], width: int | None) -> list[Column]:
    """The columns that fit in so many characters, the most important first."""

    def importance(column: Column) -> int:
        return next(
            place
            for place, name in enumerate(_BY_IMPORTANCE)
            if column.name.startswith(name)
        )

    row, *others = chosen
    ordered = [column.name for column in sorted(others, key=importance)]
    return that_fit(chosen, row, ordered, width)


def _of_metric(diff: Diff, metric: Metric) -> Iterator[Column]:
    """A column for each recording, each after the first with its change."""
    assert metric.column is not None, metric
    found = [row.metric(metric.title) for row in diff.rows]
    for side, letter in enumerate(letters(diff)):
        cells = [
            _cell(metric, row, of_row, side)
            for row, of_row in zip(diff.rows, found, strict=True)
        ]
        header = f"{metric.column.header} {letter}"
        yield Column(f"{metric.name}-{letter}", header, cells)
        if side:
            changes = [change_of(metric, of_row, side) for of_row in found]
            yield Column(f"{metric.name}-change-{letter}", "change", changes)


def _cell(metric: Metric, row: DiffRow, of_row: DiffMetric, side: int) -> str:
    status = row.statuses[side]
    if status is None or status is Status.MEASURED:
        return shown(metric, of_row.values[side])
    return status.value if metric is TOK_S else NOTHING


def shown(metric: Metric, value: float | None) -> str:
    """A value as its column has it; "-" for None."""
    if value is None:
        return NOTHING
    column = metric.column
    return (
        f"{value * column.scale:.{column.digits}f}" if column else metric.shown(value)
    )


def header_of(metric: Metric) -> str:
    """What the metric is called where its values are `shown`."""
    return metric.column.header if metric.column else metric.title


def change_of(metric: Metric, found: DiffMetric, side: int) -> str:
    """The change from the first recording: a share, or a difference of counts and dB.

    It is "-" where either value is not known.
    """
    first, value = found.values[0], found.values[side]
    if first is None or value is None:
        return NOTHING
    change = found.changes[side]
    if metric.rule is Rule.COUNT or metric.source.endswith(("_db", ".db")):
        digits = metric.column.digits if metric.column else metric.digits
        return f"{value - first:+.{digits}f}"
    return NOTHING if change is None else f"{change:+.1%}"


def limit_of(row: DiffRow) -> str:
    """The limit of a row's speed, and what it follows from."""
    if row.speed is None:
        return NOTHING
    by = {"least_loss": "least"}.get(row.speed.by, row.speed.by)
    return f"{row.speed.limit:.1%} {by}"


def verdict_of(row: DiffRow) -> str:
    """The verdict in one word, with a mark where the row was disturbed."""
    if row.comparison is None:
        return NOTHING
    return row.comparison.verdict.value + (DISTURBED if any(row.disturbed) else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherChange:
    """A line of the table of the other metrics."""

    row: DiffRow
    name: str
    metric: Metric
    found: DiffMetric

    def cells(self) -> list[str]:
        """The row, the metric, each value with its change, the limit."""
        values = []
        for side, value in enumerate(self.found.values):
            values.append(shown(self.metric, value))
            if side:
                values.append(change_of(self.metric, self.found, side))
        return [self.name, header_of(self.metric), *values, self.limit]

    @property
    def limit(self) -> str:
        """The limit of its change in words."""
        limit = self.found.limit
        if limit is None:
            return NOTHING
        if self.metric.rule is Rule.COUNT:
            return f"{limit:g} more"
        return self.metric.shown_limit(limit)


def others(
    diff: Diff, names: Sequence[str], asked: Sequence[str]
) -> Iterator[OtherChange]:
    """The metrics that changed beyond their limits, and those that are `asked` for."""
    for row, name in zip(diff.rows, names, strict=True):
        for metric in METRICS:
            found = row.metric(metric.title)
            is_shown = found.beyond or metric.title in asked
            is_known = any(value is not None for value in found.values)
            if is_shown and is_known and metric.title not in _ALWAYS:
                yield OtherChange(row=row, name=name, metric=metric, found=found)


def other_headers(diff: Diff) -> list[str]:
    """The headers of the table of the other metrics."""
    first, *rest = letters(diff)
    values = [first]
    for letter in rest:
        values += [letter, "change"]
    return ["row", "metric", *values, "limit"]


def sides(diff: Diff) -> Iterator[tuple[str, str]]:
    """The letter of each recording and what it is."""
    for letter, side in zip(letters(diff), diff.sides, strict=True):
        commit = side.environment.commit
        words = [
            side.source,
            f"recorded {side.recorded}",
            side.environment.device_key,
            *([] if commit is None else [f"commit {commit}"]),
        ]
        yield letter, ", ".join(words)


def notes(diff: Diff) -> Iterator[str]:
    """What a reader has to know beside the tables, one a line."""
    first, *_ = letters(diff)
    for letter, side in zip(letters(diff), diff.sides, strict=True):
        if side.note:
            yield f"note of {letter}: {side.note}"
    for letter, side in zip(letters(diff), diff.sides, strict=True):
        if side.changes:
            yield f"changed from {first} to {letter}: {'; '.join(side.changes)}"
    for row in diff.rows:
        for letter, words in zip(letters(diff), row.disturbed, strict=True):
            if words:
                yield f"disturbed ({DISTURBED}): {letter}: {row.id}: {words}"
    judged = [row.comparison for row in diff.rows if row.comparison is not None]
    yield from closeness_notes(judged)
    metrics = {row.speed.metric for row in diff.rows if row.speed} - {TOK_S.title}
    if metrics:
        yield f"ratio change: of {' or '.join(sorted(metrics))}, which is judged"
    for letter, side in zip(letters(diff), diff.sides, strict=True):
        for row_id in side.only:
            yield f"only in {letter}: {row_id}"


def reasons(diff: Diff) -> Iterator[tuple[str, str, str, Sequence[str]]]:
    """(id, verdict, reason, why) of each row whose figures do not say everything."""
    for row in diff.rows:
        found = row.comparison
        if found and (found.verdict.value != "SAME" or any(row.disturbed)):
            yield row.id, found.verdict.value, found.reason, found.why


def summary(diff: Diff) -> str:
    """One line that counts the rows by verdict."""
    verdicts = Counter(
        row.comparison.verdict.value if row.comparison else "not in both"
        for row in diff.rows
    )
    counts = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.items())
    last = letters(diff)[-1]
    text = f"{counted(len(diff.rows), 'row')}, {last} compared with A"
    if diff.limit is not None:
        text += f", limit {diff.limit * 100:g}%"
    return f"{text}: {counts}" if counts else text
