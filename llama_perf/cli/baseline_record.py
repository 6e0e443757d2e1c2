"""`llama-perf baseline record`: run rows in fresh processes and store them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from llama_perf.cli.baseline_show import as_report
from llama_perf.cli.run import show_progress
from llama_perf.cli.selection import (
    add_run_options,
    add_selection,
    add_shared,
    run_options,
    selected,
)
from llama_perf.errors import RecordError, SpecError
from llama_perf.files import check_folder
from llama_perf.gate import baselines
from llama_perf.gate.speed import describe_speeds
from llama_perf.report.text import as_text
from llama_perf.results.environment import Environment
from llama_perf.results.run import RowResult, Status, read_merged
from llama_perf.run.fresh_processes import (
    check_processes,
    default_processes,
    in_fresh_processes,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `record`."""
    add_selection(parser)
    add_run_options(parser)
    add_shared(parser, "--row-timeout", "--wait")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        type=Path,
        action="append",
        help="store the results of an earlier run instead of running (repeatable: the"
        " shards of one table)",
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
    """Record; whatever goes wrong raises UserError and stores nothing."""
    check_folder("baselines", arguments.baselines)
    if arguments.fresh and arguments.row:
        raise SpecError(
            "fresh",
            " ".join(arguments.row),
            "some rows alone would replace the whole baseline; leave out --row or"
            " --fresh",
        )
    environment, results = (
        _run(arguments) if arguments.source is None else _earlier(arguments)
    )
    path, baseline = baselines.record(
        arguments.baselines,
        environment=environment,
        results=results,
        fresh=arguments.fresh,
    )
    measured = {each.id for each in results if each.measurement is not None}
    not_run = [each for each in results if each.status is Status.NOT_RUN]
    new = replace(
        baseline, rows=tuple(row for row in baseline.rows if row.id in measured)
    )
    print(as_text(as_report(new, not_run)))
    for line in describe_speeds(new):
        print(line)
    print(f"recorded {len(measured)} rows in {path}")
    if not_run:
        print(f"{len(not_run)} rows were NOT_RUN, so nothing was recorded for them")
    if kept := len(baseline.rows) - len(measured):
        print(f"{kept} rows of the file were kept as they were (--fresh drops them)")
    return 0


def _run(arguments: argparse.Namespace) -> tuple[Environment, list[RowResult]]:
    """Every selected row in its processes; whatever goes wrong raises RecordError."""
    rows = selected(arguments)
    options = replace(
        run_options(arguments),
        row_timeout_s=arguments.row_timeout,
        wait=arguments.wait,
    )
    if options.slowdowns:
        raise SpecError(
            "inject-slowdown",
            " ".join(arguments.inject_slowdown),
            "a slowed row is no baseline; leave it out",
        )
    if options.damages:
        raise SpecError(
            "inject-damage",
            " ".join(options.damages),
            "a damaged row is no baseline; leave it out",
        )
    processes = arguments.processes
    if processes is None:
        processes = default_processes(rows)
    check_processes(processes)
    # They import torch, which the other actions do without.
    from llama_perf.devices.device import run_device
    from llama_perf.run.lock import held

    results: list[RowResult] = []
    environment = None
    device = run_device({row.device for row in rows})
    with held(device, wait=options.wait, progress=show_progress):
        for result, where in in_fresh_processes(
            rows, processes=processes, options=options, progress=show_progress
        ):
            if environment is None and not arguments.fresh:
                # A damaged file is to be told of before the other processes have run.
                baselines.find(arguments.baselines, where.device_key)
            environment = where
            results.append(result)
    assert environment is not None, "a selection has at least one row"
    return environment, results


def _earlier(arguments: argparse.Namespace) -> tuple[Environment, list[RowResult]]:
    """The results of a run that ended; raises RecordError for one that did not."""
    if arguments.processes is not None:
        raise SpecError(
            "processes", arguments.processes, "a run that is over has one; leave it out"
        )
    report = read_merged(arguments.source)
    if (missed := report.selected - len(report.results)) > 0:
        named = ", ".join(map(str, arguments.source))
        raise RecordError(
            f"{named}: that run stopped before {missed} of its {report.selected} rows;"
            " a part of a run is no baseline"
        )
    return report.environment, list(report.results)
