"""`--format` and `--report` of a command that draws a document of its own."""

import argparse
from pathlib import Path

from llama_perf import report


def add_formats(parser: argparse.ArgumentParser, of: type, noun: str) -> None:
    """Add both options for documents of the type `of`, which are called `noun`."""
    parser.add_argument("--format", choices=report.names(of), default="text")
    parser.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help=f"write the {noun} to this file too, in the format of its suffix:"
        f" {', '.join(report.suffixes(of))} (repeatable)",
    )
