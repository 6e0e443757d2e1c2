"""A run as a comment on a pull request: what failed, what got better, the table.

It is GitHub's markdown. What comes from rows and reasons is escaped: it notifies nobody
and breaks no table. Knows no pull request; `run/pull_request.py` sends the comment.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Sequence

from llama_perf.metric import Metric, Rule
from llama_perf.metrics import METRICS
from llama_perf.report.closeness_notes import closeness_notes
from llama_perf.report.columns import Layout, columns
from llama_perf.report.notes import summary
from llama_perf.report.table import row_names
from llama_perf.results.closeness import CLOSENESS
from llama_perf.results.run import Comparison, Report, RowResult, Verdict
from llama_perf.words import counted, printable

MOST_BYTES = 65_536
"""GitHub's limit is as many characters; none takes less than a byte."""
_LONGEST_REASON = 1_000
# Room for the lines that say what is left out.
_RESERVED = 600
_BETTER = {Verdict.FASTER, Verdict.SMALLER}
_QUIET = {Verdict.SAME, Verdict.NOT_COMPARED, Verdict.NO_BASELINE, Verdict.NOT_RUN}
_COLUMNS = ("tok/s", "change", "spread", "peak", "peak-change")
_OF_CLOSENESS = ("closeness", "closeness-change")
_BY_TITLE = {metric.title: metric for metric in METRICS}
_RATIO = Metric("a ratio of speeds", "tok_s", Rule.SPEED)
# These characters mean something in markdown or HTML.
_SPECIAL = re.compile(r"[&<>|\\`*_~\[\]$]|:(?=//)|(?<=\bwww)\.")


def marker(name: str) -> str:
    """The hidden line by which a comment is found again."""
    return f"<!-- llama-perf: {name} -->"


def has_news(report: Report) -> bool:
    """Whether a row says more than that it is the same, or did not end."""
    ends = [comparison for _, comparison in report.judged if comparison is not None]
    loud = any(end.failed or end.verdict not in _QUIET for end in ends)
    return loud or report.selected > len(report.results)


def body(report: Report, *, name: str, link: str | None = None) -> str:
    """The comment, within GitHub's limit; it says how many rows it leaves out.

    `link` leads to the run and the files that it left.
    """
    ended = [(result, end) for result, end in report.judged if end is not None]
    failed = [one for one in ended if one[1].failed]
    better = [one for one in ended if one[1].verdict in _BETTER and not one[1].failed]
    others = [
        (result, end)
        for result, end in ended
        if not end.failed and end.verdict not in _BETTER | _QUIET
    ]
    lines = [marker(name), f"### llama-perf on {plain(_device(report))}", ""]
    head = f"**{counted(len(failed), 'row')} failed**" if failed else "No row failed"
    where = "" if link is None else f" [The run and its files]({link})."
    lines += [f"{head}: {summary(report)}.{where}", ""]
    if report.note:
        lines += [plain(report.note), ""]
    if report.overall:
        lines += [f"Overall: {plain(report.overall)}", ""]
    page = _Page(lines)
    for title, chosen in (
        ("Failed", failed),
        ("Better", better),
        ("To look at", others),
    ):
        entries = [_entry(result, end, report.again) for result, end in chosen]
        page.section([f"#### {title}", ""], entries, [""], _left_of_list)
    close = [[f"- {plain(note)}"] for note in closeness_notes(report.comparisons)]
    page.section(["#### Closeness", ""], close, [""], _left_of_list)
    names, shared = row_names([result.row for result in report.results])
    common = [f"Every row: {code(shared)}", ""] if shared else []
    rows = list(_table(report, names))
    page.section(
        ["<details><summary>Every row</summary>", "", *common, *rows[:2]],
        [[line] for line in rows[2:]],
        ["", "</details>"],
        _left_of_table,
    )
    return page.text


class _Page:
    """Lines that stay within the limit."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._left = MOST_BYTES - _RESERVED - _size(lines)

    def section(
        self,
        head: Sequence[str],
        entries: Sequence[Sequence[str]],
        end: Sequence[str],
        left_out: Callable[[int, int], str],
    ) -> None:
        """Add entries between two parts, as many as fit; nothing where there is none.

        `left_out` says how many of how many do not.
        """
        if not entries:
            return
        left, taken = self._left - _size([*head, *end]), 0
        added: list[str] = []
        for entry in entries:
            left -= _size(entry)
            if left < 0:
                break
            added += entry
            taken += 1
        words = []
        if missing := len(entries) - taken:
            words = ["", left_out(missing, len(entries))]
        # Without an entry its title and its table's header would say nothing.
        lines = [*head, *added, *end] if taken else []
        self._left -= _size(lines)
        self._lines += [*lines, *words, ""] if words else lines

    @property
    def text(self) -> str:
        """The whole."""
        return "\n".join(self._lines) + "\n"


def _left_of_list(missing: int, of: int) -> str:
    return f"{missing} of these {counted(of, 'row')} are left out: a comment is full."


def _left_of_table(missing: int, of: int) -> str:
    return f"{missing} of the table's {counted(of, 'row')} are left out: it is full."


def _size(lines: Sequence[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)


def _device(report: Report) -> str:
    environment = report.environment
    return f"{environment.device_name} ({environment.device_key})"


def _entry(result: RowResult, end: Comparison, again: Sequence[str]) -> list[str]:
    """What became of a row, by how much, how certainly, why; how to see it again."""
    figures = "; ".join(_figures(end))
    lines = [f"- **{end.verdict.value}** {code(result.id)}"]
    if figures:
        lines[0] += f": {figures}"
    reason = end.reason
    if len(reason) > _LONGEST_REASON:
        reason = f"{reason[:_LONGEST_REASON]}..."
    lines.append(f"  - {plain(reason)}")
    if end.failed and again:
        command = shlex.join([*again, "--row", result.id])
        lines.append(f"  - again: {code(command[: 2 * _LONGEST_REASON])}")
    return lines


def _figures(end: Comparison) -> Iterator[str]:
    better = end.verdict in _BETTER
    for change in end.changes:
        # What has no limit explains a row, and decides nothing.
        gained = better and change.metric not in CLOSENESS
        if not (change.worse or (gained and change.limit is not None)):
            continue
        metric = _BY_TITLE.get(change.metric, _RATIO)
        limit = change.limit
        words = "" if limit is None else f", limit {metric.shown_limit(limit)}"
        values = f"{metric.shown(change.baseline)} to {metric.shown(change.current)}"
        moved = metric.shown_change(change.change)
        yield plain(f"{change.metric} {moved} ({values}{words})")
    if end.change_interval is not None:
        low, high = end.change_interval
        pairs = "" if end.pairs is None else f" by {counted(end.pairs, 'pair')}"
        yield f"95 % interval of the speed {low:+.1%} to {high:+.1%}{pairs}"


def _table(report: Report, names: Sequence[str]) -> Iterator[str]:
    """The lines of the table: its header, the line below it, its rows."""
    ended = (result.measurement for result in report.results)
    is_close = any(figures and figures.closeness for figures in ended)
    shown = (*_COLUMNS, *_OF_CLOSENESS) if is_close else _COLUMNS
    chosen = columns(report, names, Layout(names=(*shown, "verdict")))
    yield _line([column.header for column in chosen])
    yield "|" + "".join("--:|" if column.is_figure else ":--|" for column in chosen)
    for cells in zip(*(column.cells for column in chosen), strict=True):
        yield _line(cells)


def _line(cells: Sequence[str]) -> str:
    # Each is as short as a reason at most: a row's name is the user's.
    return f"| {' | '.join(plain(cell[:_LONGEST_REASON]) for cell in cells)} |"


def plain(text: str) -> str:
    """The text as it is read: no markup, no link, and nobody is notified.

    GitHub finds `@name` and `#12` in the text that it shows, so a space without width
    stands after those signs.
    """
    text = re.sub(r"[@#](?=\w)", lambda found: f"{found[0]}\u200b", printable(text))
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def code(text: str) -> str:
    """The text as code, which is shown as it is; not for a table's cell."""
    text = printable(" ".join(text.split()))
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{fence}{space}{text}{space}{fence}"
