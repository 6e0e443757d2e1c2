"""The columns of a report's table: what `--columns` may name, and which ones fit.

A column is known by a short name without spaces, since two of them share a header.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from operator import add

from llama_perf.errors import SpecError
from llama_perf.metric import value_of
from llama_perf.metrics import FOUND, METRICS, PEAK_MEMORY, TOK_S
from llama_perf.results.disturbance import disturbance
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Comparison, Report, RowResult
from llama_perf.words import loss_found

NOTHING = "-"
DISTURBED = "*"
"""The mark at the verdict of a row that was disturbed; a note says by what."""
NARROW = 80
"""The most characters of a line of the narrow table."""
_CHANGE = "{:+.1%}"
_DIFFERENCE = "{:+.1f}"
_TIMES = "{:.2f}x"
_ROW = "row"
# The space between two columns, and what tabulate adds to a header.
_GAP, _PADDING = 2, 2
_LEAST_NAME = 26
"""The most characters of a row's name in a line of a table that has to fit: a longer
one is written on several lines."""
# What a narrow table has, as far as there is room. It leaves out empty columns.
_BY_IMPORTANCE = (
    *("verdict", "tok/s", "change", "closeness", "spread", "peak", "peak-change"),
    *("closeness-change", "decode", "first-token", "bandwidth", "check"),
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column with a cell for each row; figures are aligned to the right.

    `is_usual` says whether a table has it that names no columns. `values` are a
    figure's numbers, not rounded, None where it is not known.
    """

    name: str
    header: str
    cells: Sequence[str]
    is_usual: bool = True
    values: Sequence[float | None] = ()

    @property
    def is_figure(self) -> bool:
        """Whether it holds figures."""
        return self.name not in {_ROW, "verdict"}

    @property
    def width(self) -> int:
        """Its characters in a line, with the space before it."""
        return max(len(self.header) + _PADDING, *map(len, self.cells), 0) + _GAP


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of a table's columns, and the most characters of a line.

    Without names it has all columns, or those that fit where there is a width.
    """

    names: tuple[str, ...] | None = None
    width: int | None = None


ALL = Layout()
_OF_A100 = {
    "a100": "A100 tok/s",
    "a100-speed-up": "speed-up",
    "a100-bandwidth": "A100 %",
    "a100-peak": "A100 peak GB",
}


def parse(text: str | None) -> tuple[str, ...] | None:
    """The names in `--columns`, None where it names none; raises SpecError."""
    if text in {None, "all", "narrow"}:
        return None
    names = tuple(dict.fromkeys(str(text).split(",")))
    for name in names:
        if name not in NAMES:
            allowed = f"all, narrow, or names with a comma between: {', '.join(NAMES)}"
            raise SpecError("columns", name, f"allowed: {allowed}")
    return names


def on_screen(text: str | None, terminal_width: int | None) -> Layout:
    """The layout that `--columns` asks for, None where stdout is no terminal.

    By default a table that is wider than the terminal is narrow.
    """
    names, width = parse(text), terminal_width
    if text == "narrow":
        width = min(NARROW, terminal_width or NARROW)
    return ALL if text == "all" else Layout(names, width)


def in_files(text: str | None) -> Layout:
    """The layout of a report's file, which has all columns unless some are named."""
    return Layout(parse(text))


def columns(report: Report, names: Sequence[str], layout: Layout) -> list[Column]:
    """The columns of a table in this layout; `names` are what its rows are called."""
    every = _all_columns(report.judged, report.reference, names)
    known = {column.name: column for column in every}
    if layout.names is not None:
        others = [known[name] for name in layout.names if name != _ROW]
        return [known[_ROW], *others]
    usual = [column for column in known.values() if column.is_usual]
    return that_fit(usual, known[_ROW], _BY_IMPORTANCE, layout.width)


def that_fit(
    usual: Sequence[Column],
    row: Column,
    by_importance: Sequence[str],
    width: int | None,
) -> list[Column]:
    """The columns that fit into `width`, in their order; all where it is None.

    `row` is always there, the others `by_importance`; an empty one is left out.
    """
    if width is None or _width(usual) <= width:
        return list(usual)
    known = {column.name: column for column in usual}
    room = width - min(row.width - _GAP, _LEAST_NAME)
    chosen = {row.name}
    for name in by_importance:
        if name not in known or all(cell == NOTHING for cell in known[name].cells):
            continue
        room -= known[name].width
        if room < 0:
            break
        chosen.add(name)
    return [column for name, column in known.items() if name in chosen]


def lines_of(chosen: Sequence[Column], width: int | None) -> Iterator[tuple[str, ...]]:
    """The lines of a table: one for each row, or more where its name is too long.

    The rest of a name begins at a dot, and its line has no figures.
    """
    others = chosen[1:]
    room = None if width is None else max(width - _width(others) - _GAP, _LEAST_NAME)
    for name, *cells in zip(*(column.cells for column in chosen), strict=True):
        first, *rest = _parts(name, room or len(name))
        yield first, *cells
        for part in rest:
            yield part, *[""] * len(cells)


def _parts(name: str, room: int) -> Iterator[str]:
    while len(name) > room:
        end = name.rfind(".", 1, room + 1)
        end = room if end < 0 else end
        yield name[:end]
        name = name[end:]
    yield name


def _width(chosen: Sequence[Column]) -> int:
    return sum(column.width for column in chosen) - _GAP


def _all_columns(
    judged: Sequence[tuple[RowResult, Comparison | None]],
    reference: Mapping[str, Measurement],
    names: Sequence[str],
) -> Iterator[Column]:
    measured = [result.measurement for result, _ in judged]
    verdicts = [comparison for _, comparison in judged]
    yield Column(_ROW, _ROW, names)
    for metric in METRICS:
        if (column := metric.column) is None:
            continue
        form = f"{{:.{column.digits}f}}"
        own = list(map(metric.read, measured))
        values, is_usual = own, column.is_usual
        if is_usual is None:
            is_usual = any(value is not None for value in own)
        if column.fallback is not None:
            others = (value_of(one, column.fallback) for one in measured)
            pairs = zip(own, others, strict=True)
            values = [other if value is None else value for value, other in pairs]
        cells = cells_of(values, form, column.scale)
        yield Column(column.name, column.header, cells, is_usual, values=values)
        if column.change is not None:
            name, title = column.change
            values = [_change(comparison, title) for comparison in verdicts]
            cells = cells_of(values, _DIFFERENCE if metric.difference else _CHANGE)
            if column.fallback is not None:
                is_usual = any(value is not None for value in values)
            yield Column(name, "change", cells, is_usual, values=values)
            if title == TOK_S.title:
                least = [one.minimum_detectable if one else None for one in verdicts]
                cells = [NOTHING if one is None else loss_found(one) for one in least]
                yield Column("found", FOUND, cells, any(least), least)
    marks = (DISTURBED if disturbance(*one) else "" for one in judged)
    words = starmap(outcome, judged)
    yield Column("verdict", "verdict", list(map(add, words, marks)))
    then = [reference.get(result.id) for result, _ in judged]
    speeds = list(map(TOK_S.read, then))
    ratios = list(map(_ratio, measured, then))
    shares = [one.device_bandwidth_share if one else None for one in then]
    peaks = list(map(PEAK_MEMORY.read, then))
    of_a100 = (
        (speeds, cells_of(speeds, "{:.2f}")),
        (ratios, cells_of(ratios, _TIMES)),
        (shares, cells_of(shares, "{:.1f}", 100)),
        (peaks, cells_of(peaks, "{:.2f}", 1e-9)),
    )
    for (name, header), (values, cells) in zip(_OF_A100.items(), of_a100, strict=True):
        yield Column(name, header, cells, bool(reference), values)


def cells_of(values: Iterable[float | None], form: str, scale: float = 1) -> list[str]:
    """The values times `scale`, written as `form` says; "-" for None."""
    return [
        NOTHING if value is None else form.format(value * scale) for value in values
    ]


def outcome(result: RowResult, comparison: Comparison | None) -> str:
    """The verdict on a row in one word, or how it ended where there is none."""
    return result.status.value if comparison is None else comparison.verdict.value


def _change(comparison: Comparison | None, metric: str) -> float | None:
    for change in () if comparison is None else comparison.changes:
        if change.metric == metric:
            return change.change
    return None


def change_of(comparison: Comparison | None, metric: str) -> str:
    """The change of a metric, such as "-6.9%"; "-" if it was not compared."""
    return cells_of([_change(comparison, metric)], _CHANGE)[0]


def _ratio(now: Measurement | None, then: Measurement | None) -> float | None:
    return None if now is None or then is None else now.tok_s / then.tok_s


def speed_up(now: Measurement | None, then: Measurement | None) -> str:
    """The ratio of two rows' tok/s, such as "2.31x"; "-" if either is unknown."""
    return cells_of([_ratio(now, then)], _TIMES)[0]


NAMES = tuple(column.name for column in _all_columns((), {}, ()))
"""What `--columns` may name."""
