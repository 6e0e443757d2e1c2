"""`llama-perf history`: keep each run's figures, draw them, find where they changed."""

import argparse
import fnmatch
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_perf import report as reports
from llama_perf.cli.ending import code_of, terminal_width
from llama_perf.cli.formats import add_formats
from llama_perf.cli.no_command import print_help
from llama_perf.errors import RecordError, SpecError, UserError
from llama_perf.files import (
    check_appendable,
    check_folder,
    check_writable_anew,
    is_absent,
)
from llama_perf.gate import change_points
from llama_perf.gate.history import LAST, losses, trends
from llama_perf.report.columns import Layout
from llama_perf.report.trends import IN_ASCII, change_in_words
from llama_perf.results import history
from llama_perf.results.history import HistoryLine
from llama_perf.results.trends import ChangePoint, Trend, Trends
from llama_perf.run.numbers import Number
from llama_perf.run.revision import commits_between
from llama_perf.words import counted, did_you_mean, shown

HELP = "keep each run's figures, draw their trends, and find where they changed"
_RUNS = Number(int, "a whole number above 0", lambda count: count > 0)
_PERCENT = Number(float, "a percentage from 0 to 99", lambda part: 0 <= part <= 99)
_MOST_COMMITS = 20
"""Commits between two runs that are printed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Device:
    """A device: all lines of its history, and the trends of the rows asked for."""

    key: str
    lines: list[HistoryLine]
    rows: list[Trend]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    parser.set_defaults(act=print_help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    for act, text in (
        (add, "add the measured rows of runs to the histories of their devices"),
        (show, "print the trend of each row, or write it to a file"),
        (check, "exit with 1 if the newest change point of a row is a loss"),
    ):
        action = actions.add_parser(act.__name__, help=text, description=text)
        action.set_defaults(act=act, parser=action)
        action.add_argument(
            "--history",
            metavar="DIR",
            type=_named_folder,
            help="the folder of histories (default: history/ of the project)",
        )
        if act is add:
            text = "the results of a run (--results FILE, or a --report in JSON)"
            action.add_argument(
                "results", metavar="RESULTS", type=Path, nargs="+", help=text
            )
            continue
        _add_choice(action)
        if act is show:
            _add_drawing(action)
            continue
        action.add_argument(
            "--last",
            metavar="RUNS",
            type=_RUNS,
            default=LAST,
            help="a change point fails in so many runs from it on, and passes as"
            " accepted afterwards (default: %(default)s)",
        )


def _add_choice(parser: argparse.ArgumentParser) -> None:
    text = "only this device's history (default: all)"
    parser.add_argument("--device", metavar="KEY", help=text)
    parser.add_argument(
        "--row",
        metavar="GLOB",
        action="append",
        default=[],
        help="only the rows whose id matches the pattern (repeatable)",
    )
    parser.add_argument(
        "--least",
        metavar="PERCENT",
        type=_PERCENT,
        default=change_points.LEAST * 100,
        help="the change below which no change point counts (default: %(default)g)",
    )


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--last",
        metavar="RUNS",
        type=_RUNS,
        default=LAST,
        help="the table's medians and curves are of the last so many runs of a row"
        " (default: %(default)s); charts and data have all of them",
    )
    add_formats(parser, Trends, "trends")


def main(arguments: argparse.Namespace) -> int:
    """Do what the action says; without one print the help and return 2."""
    code: int = arguments.act(arguments)
    return code


def add(arguments: argparse.Namespace) -> int:
    """Add the measured rows of some runs; after a UserError nothing is added."""
    folder = _folder(arguments)
    runs = [(path, *history.read_run(path)) for path in arguments.results]
    check_folder("history", folder)
    for _, report, _ in runs:
        path = history.path_of(folder, report.environment.device_key)
        check_writable_anew("history", path)
        check_appendable("history", path)
    for source, report, lines in runs:
        if not lines:
            print(f"{source}: nothing to add, since no row was measured")
            continue
        path = history.path_of(folder, report.environment.device_key)
        added = history.append(path, lines)
        words = [f"added {counted(len(added), 'row')} to {path}"]
        if there := len(lines) - len(added):
            words.append(f"{counted(there, 'row')} there already")
        if left := len(report.results) - len(lines):
            words.append(f"{counted(left, 'row')} not measured")
        if disturbed := sum(line.disturbed is not None for line in added):
            words.append(f"{counted(disturbed, 'row')} marked as disturbed")
        print(f"{source}: {', '.join(words)}")
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Draw the trends; change points are left out, with a note, without Otava."""
    folder = _folder(arguments)
    kept = [("a history", path) for path in history.paths(folder)]
    reports.check_paths(arguments.report, Trends, others=kept)
    for path in arguments.report:
        if history.is_one(folder, path):
            reason = "it would be read as a device's history; give another folder"
            raise SpecError("report", str(path), reason)
    form = reports.format_named(arguments.format, Trends)
    problem = change_points.why_not()
    devices = list(_read(arguments, with_changes=problem is None))
    document = Trends(
        last=arguments.last,
        rows=tuple(row for device in devices for row in device.rows),
        note=problem,
    )
    problems = reports.write_all(document, arguments.report)
    text = reports.draw(document, form.name, Layout(width=terminal_width()))
    print(_in_encoding(text, sys.stdout.encoding), end="")
    return code_of(problems)


def _in_encoding(text: str, encoding: str | None) -> str:
    """The text, its curves in ASCII where the encoding lacks their blocks."""
    try:
        text.encode(encoding or "ascii")
    except UnicodeEncodeError:
        return text.translate(IN_ASCII)
    return text


def check(arguments: argparse.Namespace) -> int:
    """Name each newest change point that is a loss; 1 where there is one."""
    if (problem := change_points.why_not()) is not None:
        raise UserError(problem)
    devices = list(_read(arguments, with_changes=True))
    failed = 0
    for device in devices:
        for trend in device.rows:
            for change in losses(trend, device.lines, last=arguments.last):
                print(f"{device.key}: {change_in_words(trend, change)}")
                for line in _commits(change):
                    print(f"  {line}")
                failed += 1
    rows = [row for device in devices for row in device.rows]
    left_out = sum(len(row.lines) - len(row.calm) for row in rows)
    words = [
        f"{counted(failed, 'loss')} of {arguments.least:g} % or more in the last"
        f" {counted(arguments.last, 'run')} of {counted(len(rows), 'row')}"
    ]
    if left_out:
        words.append(f"{counted(left_out, 'disturbed figure')} left out")
    few = sum(len(row.calm) < 2 * change_points.MIN_RUNS for row in rows)
    if few:
        words.append(f"{counted(few, 'row')} with too few runs to show a change")
    print("; ".join(words))
    return 1 if failed else 0


def _commits(change: ChangePoint) -> Iterator[str]:
    """What was committed between the two runs of a change point."""
    old, new = change.before.commit, change.after.commit
    if old is None or new is None:
        yield "the commits are not known"
        return
    if old == new:
        yield f"both runs are of {new}: no commit lies between them"
        return
    lines = commits_between(old, new)
    if lines is None:
        yield f"between {old} and {new}, which are not both in this checkout"
    elif not lines:
        yield f"{new} is no later commit than {old}"
    else:
        yield from lines[:_MOST_COMMITS]
        if (more := len(lines) - _MOST_COMMITS) > 0:
            yield f"and {more} more: git log {old}..{new}"


def _named_folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("'' is not allowed; name a folder")
    return Path(text)


def _folder(arguments: argparse.Namespace) -> Path:
    folder: Path | None = arguments.history
    return history.history_folder() if folder is None else folder


def _read(arguments: argparse.Namespace, *, with_changes: bool) -> Iterator[_Device]:
    """The histories asked for, at least one; raises UserError.

    Damaged lines, and a history of several that has no line, are named on stderr.
    """
    folder = _folder(arguments)
    read: dict[str, list[HistoryLine]] = {}
    skipped: list[str] = []
    for key in _keys(folder, arguments.device):
        try:
            read[key], problems = history.read(history.path_of(folder, key))
            skipped += problems
        except RecordError as error:
            skipped.append(str(error))
    if not read:
        raise RecordError(skipped[0])
    for problem in skipped:
        print(f"llama-perf: skipped: {problem}", file=sys.stderr)
    ids = {line.id for lines in read.values() for line in lines}
    chosen = set(_chosen(ids, arguments.row))
    for key, lines in read.items():
        own = [line for line in lines if line.id in chosen]
        least = arguments.least / 100
        rows = trends(key, own, least=least, with_changes=with_changes)
        yield _Device(key=key, lines=lines, rows=rows)


def _keys(folder: Path, device: str | None) -> list[str]:
    """The devices asked for, at least one; raises UserError."""
    keys = [] if is_absent(folder) else history.keys(folder)
    if not keys:
        makes = "`llama-perf history add RESULTS` makes one"
        raise RecordError(f"history: the folder {folder} has none yet; {makes}")
    if device is not None and device not in keys:
        raise RecordError(
            f"device: {device!r} has no history in {folder};"
            f" {did_you_mean(device, keys)}allowed: {', '.join(keys)}"
        )
    return keys if device is None else [device]


def _chosen(ids: Iterable[str], globs: Sequence[str]) -> Iterator[str]:
    """The ids that match a glob, or all without globs; raises UserError."""
    known = sorted(ids)
    for glob in globs:
        if not fnmatch.filter(known, glob):
            close = fnmatch.filter(known, f"*{glob.replace('.', '*')}*")[:1]
            meant = f"did you mean {close[0]}? " if close else did_you_mean(glob, known)
            rows = counted(len(known), "row")
            raise UserError(
                f"row: no row of the history matches {shown(glob)};"
                f" {meant}`llama-perf history show` lists the {rows}"
            )
    wanted = globs or ["*"]
    return (
        one for one in known if any(fnmatch.fnmatchcase(one, glob) for glob in wanted)
    )
