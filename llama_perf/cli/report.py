"""`llama-perf report`: print the results of earlier runs again."""

import argparse
from pathlib import Path

from llama_perf import report
from llama_perf.results.run import read_merged

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


def main(arguments: argparse.Namespace) -> int:
    """Print the report."""
    print(report.draw(read_merged(arguments.file), arguments.format), end="")
    return 0
