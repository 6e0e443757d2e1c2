"""`llama-perf report`: print the results of earlier runs again, or write them."""

import argparse
from pathlib import Path

from llama_perf import report
from llama_perf.cli.ending import code_of, terminal_width
from llama_perf.errors import SpecError
from llama_perf.report.columns import on_screen
from llama_perf.results.run import read_merged
from llama_perf.run.read_options import add_shared, request_of

HELP = f"print the results of earlier runs as {', '.join(report.names())}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="a run's results; several, which must be of one machine and one commit,"
        " are merged into one report",
    )
    parser.add_argument("--format", choices=report.names(), default="text")
    add_shared(parser, "--report", "--columns")


def main(arguments: argparse.Namespace) -> int:
    """Print the report, and write its files; 2 where one could not be written."""
    request = request_of(arguments, reads=arguments.file)
    layout = on_screen(arguments.columns, terminal_width())
    form = report.format_named(arguments.format)
    if arguments.columns is not None and not form.has_columns:
        reason = f"{arguments.format} always has all of them; leave it out"
        raise SpecError("columns", arguments.columns, reason)
    merged = read_merged(arguments.file)
    problems = request.write_reports(merged)
    print(report.draw(merged, arguments.format, layout), end="")
    return code_of(problems)
