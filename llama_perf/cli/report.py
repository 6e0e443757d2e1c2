"""`llama-perf report`: draw the results of earlier runs again."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama_perf.report.render import FORMATS
from llama_perf.results.run import read_merged

HELP = "print the results of earlier runs as text, markdown or JSON"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="a run's results; of several, which must be of one machine and one commit,"
        " one report is made",
    )
    parser.add_argument("--format", choices=sorted(FORMATS), default="text")


def main(arguments: argparse.Namespace) -> int:
    """Print the report."""
    print(FORMATS[arguments.format](read_merged(arguments.file)), end="")
    return 0
