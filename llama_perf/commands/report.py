"""`llama-perf report`: draw the results of an earlier run again."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama_perf.report.render import FORMATS
from llama_perf.resume import read_report

HELP = "print the results of an earlier run as text, markdown or JSON"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a run's results")
    parser.add_argument("--format", choices=sorted(FORMATS), default="text")


def main(arguments: argparse.Namespace) -> int:
    """Print the report."""
    print(FORMATS[arguments.format](read_report(arguments.file)), end="")
    return 0
