"""`llama-perf closeness`: each quantized row beside its unquantized twin, no speed."""

import argparse
import sys
from contextlib import closing
from pathlib import Path

from llama_perf import report as reports
from llama_perf.cli.ending import code_of
from llama_perf.files import check_apart, check_writable
from llama_perf.results.closeness_report import ClosenessReport
from llama_perf.run import options, read_options
from llama_perf.run.display import Display
from llama_perf.run.interrupts import Interruptible
from llama_perf.run.resume import interrupted_lines
from llama_perf.strict_json import to_line

HELP = "compare quantized rows with their unquantized twins over a text"
_SUFFIXES = ", ".join(reports.suffixes(ClosenessReport))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    read_options.add_shared(
        parser,
        *("--set", "--rows", "--row", "--shard", "--checkpoints", "--text"),
        *("--tokens", "--isolate", "--row-timeout", "--wait", "--results"),
        *("--resume", "--report", "--compare", "--baselines"),
        *("--on-missing-baseline", "--inject-damage"),
        compare="compare with this device's baseline: a row that lost closeness is"
        " WORSE",
        report="write the table to this file, in the format of its suffix:"
        f" {_SUFFIXES} (repeatable)",
        row_timeout="stop a row that takes longer and report it as INVALID (default:"
        " no limit)",
    )
    parser.add_argument(
        "--add-to",
        metavar="FILE",
        type=Path,
        help="add the figures to the results that `llama-perf run --results FILE` or"
        " `pytest tests/perf` wrote, on this machine and of this revision",
    )


def main(arguments: argparse.Namespace) -> int:
    """Compare the selected rows; 1 where one failed, or the code of an interrupt."""
    add_to = arguments.add_to
    request = read_options.request_of(arguments)
    reports.check_paths(request.report, ClosenessReport)
    if add_to is not None:
        check_writable("add-to", add_to)
        written = [("results", request.results)]
        written += [("report", path) for path in request.report]
        check_apart(written, [("the file of --add-to", add_to)])
    rows = request.selected()
    # It imports torch, and a mistake in the options is reported sooner without.
    from llama_perf.run.closeness_run import ClosenessRun

    display = Display.on(sys.stderr)
    with (
        closing(ClosenessRun(rows, request, add_to=add_to, display=display)) as run,
        Interruptible() as block,
    ):
        for row in run.rows:
            run.run_row(row)
    report = run.report
    problems = [*filter(None, (run.file.problem, run.added_to.problem))]
    problems += reports.write_all(report, request.report)
    if report.results:
        print(reports.draw(report, "text"))
    if run.added:
        print(f"{run.added} to {add_to}")
    if request.print_results:
        print(to_line(report))
    code = code_of(problems)
    if block.code is not None:
        command = [*options.program("llama-perf"), *arguments.words]
        for line in interrupted_lines(report, request, block.code, command):
            print(line, file=sys.stderr)
        return block.code
    return 1 if report.failed else code
