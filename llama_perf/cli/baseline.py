"""`llama-perf baseline`: record this device's baseline; show, compare, check all."""

import argparse
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from llama_perf.cli.ending import print_report
from llama_perf.errors import RecordError, SpecError, check_count
from llama_perf.files import check_folder, is_absent
from llama_perf.gate.review import describe_speeds, differences, problems, warnings
from llama_perf.results import baselines
from llama_perf.results.baselines import Baseline
from llama_perf.results.run import Environment, Report, RowResult, Status, read_merged
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from llama_perf.run.display import Display
from llama_perf.run.fresh_processes import default_processes, in_fresh_processes
from llama_perf.run.interrupts import Interruptible, described
from llama_perf.run.options import RunRequest, add_shared, request_of
from llama_perf.run.revision import file_at, resolve

HELP = "record this device's baseline, or show, compare and check the stored ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for act, text in (
        (record, "run rows and store them"),
        (show, "print the stored baselines"),
        (diff, "print what changed in the baselines since a revision"),
        (check, "exit with 1 if a baseline is damaged or out of date"),
    ):
        action = actions.add_parser(act.__name__, help=text)
        action.set_defaults(act=act)
        add_shared(action, "--baselines")
        if act in {record, show}:
            add_shared(action, "--columns")
        if act is record:
            _add_record_options(action)
        else:
            text = "only this device's baseline (default: all)"
            action.add_argument("--device", metavar="KEY", help=text)
        if act is diff:
            action.add_argument(
                "old",
                metavar="REV|FILE",
                nargs="?",
                default="HEAD",
                help="a revision of this checkout, or a baseline file (default: HEAD)",
            )


def _add_record_options(parser: argparse.ArgumentParser) -> None:
    add_shared(parser, "--set", "--rows", "--row", "--shard", "--checkpoints")
    add_shared(parser, "--row-timeout", "--wait")
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
        type=int,
        help="run each row in N fresh processes (default: 10 on CUDA, 5 on CPU)",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start the file anew instead of keeping the rows that were not run",
    )


def main(arguments: argparse.Namespace) -> int:
    """Do what the action says."""
    code: int = arguments.act(arguments)
    return code


def record(arguments: argparse.Namespace) -> int:
    """Run rows in fresh processes and store them; after a UserError nothing is."""
    request = request_of(arguments, new_baselines=True)
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
    _print(baseline, request, *not_run, ids=measured)
    for warning in warnings(baseline, _known(), request.limits, ids=measured):
        print(warning)
    print(f"recorded {len(measured)} rows in {path}")
    if not_run:
        print(f"{len(not_run)} rows were NOT_RUN, so nothing was recorded for them")
    if others := len(baseline.rows) - len(measured):
        print(f"{others} rows of the file stay as they were (--fresh drops them)")
    return 0


def _run(
    arguments: argparse.Namespace, request: RunRequest
) -> tuple[Environment, list[RowResult]]:
    """Run every selected row in its processes; raises RecordError where one breaks."""
    rows = request.selected()
    processes = arguments.processes
    if processes is None:
        processes = default_processes(rows)
    check_count("processes", processes, 1)
    # They import torch, which the other actions do without.
    from llama_perf.devices.device import run_device
    from llama_perf.measure.environment import collect
    from llama_perf.run.lock import locked

    device = run_device({row.device for row in rows})
    display = Display.on(sys.stderr)
    with locked(device, wait=request.wait, notify=display.note):
        key = collect(device).device_key
        # A damaged file is reported before anything has run.
        look = baselines.check_replaceable if arguments.fresh else baselines.find
        look(request.baselines, key)
        return in_fresh_processes(
            rows, processes=processes, options=request, display=display
        )


def _earlier(arguments: argparse.Namespace) -> tuple[Environment, list[RowResult]]:
    """Read the results of a run that ended; raises RecordError for one that did not."""
    if arguments.processes is not None:
        reason = "an earlier run has one process a row; leave it out"
        raise SpecError("processes", arguments.processes, reason)
    report = read_merged(arguments.source)
    if (missed := report.selected - len(report.results)) > 0:
        files = ", ".join(map(str, arguments.source))
        raise RecordError(
            f"{files}: that run stopped before {missed} of its {report.selected} rows;"
            " a part of a run is no baseline"
        )
    return report.environment, list(report.results)


def show(arguments: argparse.Namespace) -> int:
    """Print each baseline as a table, and how far its processes lie apart."""
    request = request_of(arguments)
    for key, path in _asked(arguments):
        baseline = baselines.read(path, device_key=key)
        print(f"{key}: recorded {baseline.recorded}")
        if baseline.note:
            print(baseline.note)
        ids = {row.id for row in baseline.rows}
        _print(baseline, request, ids=ids)
        print()
    return 0


def diff(arguments: argparse.Namespace) -> int:
    """Print what changed since a revision or since one file; returns 0."""
    file = Path(arguments.old)
    # A branch and a folder may share a name, such as `main`.
    is_revision = is_absent(file) or os.path.isdir(file)
    commit = resolve(arguments.old, field="diff") if is_revision else None
    for key, path in _asked(arguments):
        new = baselines.read(path, device_key=key)
        if commit is None:
            old: Baseline | None = baselines.read(file)
        else:
            text = file_at(commit, path)
            source = f"{arguments.old}:{path.name}"
            old = None if text is None else baselines.parse(text, source=source)
        lines = [f"new: {len(new.rows)} rows, recorded {new.recorded}"]
        if old is not None:
            lines = differences(old, new) or ["the same"]
        print(f"{key}:", *lines, sep="\n  ")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Read the baselines and print what is wrong with them; 1 where anything is.

    The published table was measured elsewhere: it only has to be readable.
    """
    limits, count = request_of(arguments).limits, 0
    for key, path in _asked(arguments):
        lines = baselines.damage(path, device_key=key)
        if not lines and key != baselines.REFERENCE_KEY:
            lines = list(problems(baselines.read(path), _known(), limits))
        found = f"{len(lines)} problems" if lines else "sound"
        print(f"{key}: {found}", *lines, sep="\n  ")
        count += len(lines)
    return 1 if count else 0


def _asked(arguments: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """The baselines asked for; raises RecordError for a device that has none."""
    folder, device = request_of(arguments).baselines, arguments.device
    keys = baselines.keys(folder)
    if device is not None and device not in keys:
        raise RecordError(
            f"device: {device!r} has no baseline in {folder}; allowed:"
            f" {', '.join(keys) or 'none yet'}"
        )
    for key in keys if device is None else [device]:
        yield key, baselines.path_of(folder, key)


def _known() -> dict[str, RowSpec]:
    return {row.id: row for row in selection.every_row()}


def _print(
    baseline: Baseline, request: RunRequest, *others: RowResult, ids: Collection[str]
) -> None:
    """Print rows of a baseline as if measured now, `others`, and their noise.

    Noise is estimated from all of its rows, as in a run.
    """
    measured = [
        RowResult(
            id=row.id, row=row.row, status=Status.MEASURED, measurement=row.measurement
        )
        for row in baseline.rows
        if row.id in ids
    ]
    report = Report(
        started=baseline.recorded,
        environment=baseline.environment,
        results=(*measured, *others),
    )
    print_report(report, request)
    for line in describe_speeds(baseline, _known(), request.limits, ids=ids):
        print(line)
