"""`llama-perf baseline`: record this device's baseline, or show one."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama_perf import baseline as baselines
from llama_perf.codec import from_json
from llama_perf.commands.run import run_rows
from llama_perf.commands.selection import (
    add_baselines,
    add_run_options,
    add_selection,
    selected,
)
from llama_perf.errors import RecordError
from llama_perf.records import Baseline, Report, RowResult, Status
from llama_perf.report.render import as_text
from llama_perf.writable import check_folder

HELP = "record this device's baseline, or show the stored ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    record = actions.add_parser("record", help="run rows and store them")
    add_selection(record)
    add_run_options(record)
    record.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        type=Path,
        help="store the results of an earlier run instead of running",
    )
    record.add_argument(
        "--fresh",
        action="store_true",
        help="start the file anew instead of keeping the rows that were not run",
    )
    show = actions.add_parser("show", help="print the stored baselines")
    show.add_argument("--device", metavar="KEY", help="one device's (default: all)")
    for action in (record, show):
        add_baselines(action)


def main(arguments: argparse.Namespace) -> int:
    """Record or show."""
    return _record(arguments) if arguments.action == "record" else _show(arguments)


def _record(arguments: argparse.Namespace) -> int:
    check_folder("baselines", arguments.baselines)
    if arguments.source is not None:
        report = read_report(arguments.source)
    else:
        report = run_rows(
            selected(arguments), arguments, path=None, compare=False
        ).report
        print(as_text(report))
    path, baseline = baselines.record(
        arguments.baselines,
        environment=report.environment,
        results=report.results,
        fresh=arguments.fresh,
    )
    measured = sum(result.measurement is not None for result in report.results)
    print(f"recorded {measured} rows in {path}")
    if not_run := len(report.results) - measured:
        print(f"{not_run} rows were NOT_RUN, so nothing was recorded for them")
    if kept := len(baseline.rows) - measured:
        print(f"{kept} rows of the file were kept as they were (--fresh drops them)")
    return 0


def read_report(path: Path) -> Report:
    """Read a run's results; raises RecordError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
    return from_json(Report, text, source=str(path))


def _show(arguments: argparse.Namespace) -> int:
    keys = baselines.keys(arguments.baselines)
    if arguments.device is not None:
        if arguments.device not in keys:
            raise RecordError(
                f"device: {arguments.device!r} has no baseline in"
                f" {arguments.baselines}; allowed: {', '.join(keys) or 'none yet'}"
            )
        keys = [arguments.device]
    for key in keys:
        baseline = baselines.read(baselines.path_of(arguments.baselines, key))
        print(f"{key}: recorded {baseline.recorded}")
        if baseline.note:
            print(baseline.note)
        print(as_text(_as_report(baseline)))
    return 0


def _as_report(baseline: Baseline) -> Report:
    return Report(
        started=baseline.recorded,
        environment=baseline.environment,
        results=tuple(
            RowResult(
                id=row.id,
                row=row.row,
                status=Status.MEASURED,
                measurement=row.measurement,
            )
            for row in baseline.rows
        ),
    )
