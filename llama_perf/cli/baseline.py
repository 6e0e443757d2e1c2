"""`llama-perf baseline`: record this device's baseline; show, compare, check all."""

import argparse
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from llama_perf.cli.ending import code_of, print_report, terminal_width
from llama_perf.cli.no_command import print_help
from llama_perf.errors import RecordError, SpecError, UserError
from llama_perf.files import check_folder, is_absent
from llama_perf.gate.diff import diff_of
from llama_perf.gate.review import describe_speeds, problems, warnings
from llama_perf.report.columns import on_screen
from llama_perf.report.diff_formats import as_text
from llama_perf.results import baselines, recording
from llama_perf.results.baselines import Baseline
from llama_perf.results.run import Environment, Report, RowResult, Status, read_merged
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from llama_perf.run.display import Display
from llama_perf.run.fresh_processes import default_processes, in_fresh_processes
from llama_perf.run.interrupts import Interruptible, described
from llama_perf.run.numbers import Number
from llama_perf.run.options import RunRequest
from llama_perf.run.read_options import add_shared, request_of
from llama_perf.run.revision import file_at, resolve
from llama_perf.words import counted, did_you_mean

HELP = "record this device's baseline, or show, compare and check the stored ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    parser.set_defaults(act=print_help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    for act, text in (
        (record, "run rows and store them"),
        (show, "print the stored baselines"),
        (
            diff,
            "print the rows that changed since a revision; judging them is `diff`'s",
        ),
        (check, "exit with 1 if a baseline is damaged or out of date"),
    ):
        action = actions.add_parser(act.__name__, help=text)
        action.set_defaults(act=act, parser=action)
        add_shared(action, "--baselines")
        if act in {record, show}:
            add_shared(action, "--columns")
        if act is record:
            _add_record_options(action)
        else:
            text = "only this device's baseline (default: all)"
            action.add_argument("--device", metavar="KEY", help=text)
        if act is check:
            action.add_argument(
                "--rows",
                dest="files",
                metavar="FILE",
                type=Path,
                action="append",
                default=[],
                help="the baselines may have the rows of this file of your own, beside"
                " those of the sets (repeatable)",
            )
        if act is diff:
            action.add_argument(
                "old",
                metavar="REV|FILE",
                nargs="?",
                default="HEAD",
                help="a revision of this checkout, or a baseline file (default: HEAD)",
            )


# Options of `record` that say which rows to run, and how.
_OF_RUNNING = (
    *("set", "rows", "row", "shard", "checkpoints", "row_timeout", "wait"),
    *("processes", "closeness", "text", "tokens"),
)


def _add_record_options(parser: argparse.ArgumentParser) -> None:
    add_shared(parser, "--set", "--rows", "--row", "--shard", "--checkpoints")
    add_shared(parser, "--row-timeout", "--wait", "--report")
    add_shared(parser, "--closeness", "--text", "--tokens")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        type=Path,
        action="append",
        help="store the results of an earlier run instead of running (repeatable, for"
        " the shards of one run)",
    )
    parser.add_argument(
        "--processes",
        metavar="N",
        type=Number(int, "1 to 1000", lambda count: 1 <= count <= 1000),
        help="run each row in N fresh processes (default: 10 on CUDA, 5 on CPU)",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start the file anew instead of keeping the rows that were not run",
    )


def main(arguments: argparse.Namespace) -> int:
    """Do what the action says; without one print the help and return 2."""
    code: int = arguments.act(arguments)
    return code


def record(arguments: argparse.Namespace) -> int:
    """Run rows in fresh processes and store them; after a UserError nothing is."""
    reads = arguments.source or []
    request = request_of(arguments, new_baselines=True, reads=reads)
    folder = request.baselines
    check_folder("baselines", folder)
    if arguments.fresh and request.row:
        reason = "the selected rows would replace the whole baseline; leave out --row"
        raise SpecError("fresh", " ".join(request.row), f"{reason} or --fresh")
    with Interruptible() as block:
        if arguments.source is None:
            environment, results = _run(arguments, request)
        else:
            environment, results = _earlier(arguments)
    if block.code is not None:
        ended = f"llama-perf: {described(block.code)}; nothing was recorded"
        print(ended, file=sys.stderr)
        return block.code
    path, baseline = baselines.record_rows(
        folder, environment=environment, results=results, fresh=arguments.fresh
    )
    measured = {result.id for result in results if result.measurement is not None}
    not_run = [result for result in results if result.status is Status.NOT_RUN]
    known = _known()
    report = _report_of(baseline, *not_run, ids=measured)
    problems = request.write_reports(report)
    _print(report, baseline, request, known)
    for warning in warnings(baseline, known, request.limits, ids=measured):
        print(warning)
    print(f"recorded {counted(len(measured), 'row')} in {path}")
    if not_run:
        print(f"not recorded, since NOT_RUN: {counted(len(not_run), 'row')}")
    if others := len(baseline.rows) - len(measured):
        print(f"kept, since not run: {counted(others, 'row')} (--fresh drops those)")
    return code_of(problems)


def _run(
    arguments: argparse.Namespace, request: RunRequest
) -> tuple[Environment, list[RowResult]]:
    """Run every selected row in its processes; raises RecordError where one breaks."""
    request.check_text()
    rows = request.selected()
    processes = arguments.processes
    if processes is None:
        processes = default_processes(rows)
    # They import torch, which the other actions do without.
    from llama_perf.devices.device import run_device
    from llama_perf.measure.environment import collect, of_rows
    from llama_perf.run.lock import locked

    device = run_device({row.device for row in rows})
    display = Display.on(sys.stderr)
    with locked(device, wait=request.wait, notify=display.note):
        key = of_rows(collect(device), rows).device_key
        # A damaged file is reported before anything has run.
        look = baselines.check_replaceable if arguments.fresh else baselines.find
        look(request.baselines, key)
        environment, results = in_fresh_processes(
            rows, processes=processes, options=request, display=display
        )
        return of_rows(environment, rows), results


def _earlier(arguments: argparse.Namespace) -> tuple[Environment, list[RowResult]]:
    """Read the results of a run that ended; raises RecordError for one that did not."""
    for name in _OF_RUNNING:
        # Each is None, False or an empty list where it was not given.
        if getattr(arguments, name):
            option = name.replace("_", "-")
            raise UserError(
                f"{option}: not with --from, which runs and chooses nothing"
            )
    report = read_merged(arguments.source)
    if (missed := report.selected - len(report.results)) > 0:
        files = ", ".join(map(str, arguments.source))
        raise RecordError(
            f"{files}: that run stopped before {missed} of"
            f" {counted(report.selected, 'row')}; a part of a run is no baseline"
        )
    return report.environment, list(report.results)


def show(arguments: argparse.Namespace) -> int:
    """Print each baseline as a table, and how far its processes lie apart."""
    request, known = request_of(arguments), _known()
    for key, path in _asked(arguments):
        baseline = baselines.read(path, device_key=key)
        print(f"{key}: recorded {baseline.recorded}")
        if baseline.note:
            print(baseline.note)
        report = _report_of(baseline, ids={row.id for row in baseline.rows})
        _print(report, baseline, request, known)
        print()
    return 0


def diff(arguments: argparse.Namespace) -> int:
    """Print which rows changed since a revision or one file, as `diff`; returns 0."""
    file = Path(arguments.old)
    # A branch and a folder may share a name, such as `main`.
    is_revision = is_absent(file) or os.path.isdir(file)
    commit = resolve(arguments.old, field="diff") if is_revision else None
    request = request_of(arguments)
    for key, path in _asked(arguments):
        new = baselines.read(path, device_key=key)
        source = arguments.old
        if commit is None:
            old: Baseline | None = baselines.read(file)
        else:
            text = file_at(commit, f"./{path.name}", root=path.parent)
            source = f"{arguments.old}:{path.name}"
            old = None if text is None else baselines.parse(text, source=source)
        print(f"{key}:")
        if old is None:
            print(f"new: {counted(len(new.rows), 'row')}, recorded {new.recorded}")
            continue
        sides = (
            recording.of_baseline(old, source=source),
            recording.of_baseline(new, source=str(path)),
        )
        changed = diff_of(sides, project=request.limits).changed()
        layout = on_screen(None, terminal_width())
        print(as_text(changed, layout) if changed.differs else "the same\n", end="")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Read the baselines and print what is wrong with them; 1 where anything is.

    The published table was measured elsewhere: it only has to be readable.
    """
    known, limits = _known(arguments.files), request_of(arguments).limits
    count = 0
    for key, path in _asked(arguments):
        lines = baselines.damage(path, device_key=key)
        if not lines and key != baselines.REFERENCE_KEY:
            lines = list(problems(baselines.read(path), known, limits))
        found = counted(len(lines), "problem") if lines else "sound"
        print(f"{key}: {found}", *lines, sep="\n  ")
        count += len(lines)
    return 1 if count else 0


def _asked(arguments: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """The baselines asked for; raises RecordError for a device that has none."""
    folder, device = request_of(arguments).baselines, arguments.device
    keys = baselines.keys(folder)
    if not keys:
        raise RecordError(
            f"baselines: {folder} has none yet; `llama-perf baseline record` makes one"
        )
    if device is not None and device not in keys:
        raise RecordError(
            f"device: {device!r} has no baseline in {folder};"
            f" {did_you_mean(device, keys)}allowed: {', '.join(keys)}"
        )
    for key in keys if device is None else [device]:
        yield key, baselines.path_of(folder, key)


def _known(files: Sequence[Path] = ()) -> dict[str, RowSpec]:
    """The rows of all sets and of some files, by id."""
    own = chain.from_iterable(map(selection.load_file, files))
    return {row.id: row for row in (*selection.every_row(), *own)}


def _report_of(baseline: Baseline, *others: RowResult, ids: Collection[str]) -> Report:
    """Rows of a baseline as if measured now, and `others`."""
    measured = [row.result for row in baseline.rows if row.id in ids]
    return Report(
        started=baseline.recorded,
        environment=baseline.environment,
        results=(*measured, *others),
    )


def _print(
    report: Report,
    baseline: Baseline,
    request: RunRequest,
    known: Mapping[str, RowSpec],
) -> None:
    """Print rows of a baseline, and their noise.

    Noise is estimated from all of its rows, as in a run. `known` are the rows of all
    sets by id.
    """
    print_report(report, request)
    ids = {result.id for result in report.results if result.measurement is not None}
    for line in describe_speeds(baseline, known, request.limits, ids=ids):
        print(line)
