"""`llama-perf history`: keep each run's figures, draw them, find where they changed."""

import argparse
from pathlib import Path

from llama_perf.cli.no_command import print_help
from llama_perf.run.numbers import Number

HELP = "keep each run's figures, draw their trends, and find where they changed"
_RUNS = Number(int, "a whole number above 0", lambda count: count > 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    parser.set_defaults(act=print_help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    for act, text in (
        (add, "add the rows of runs to the histories of their devices"),
        (show, "print or write the trend of each row"),
        (check, "exit with 1 if a row's newest change point is a loss"),
    ):
        action = actions.add_parser(act.__name__, help=text, description=text)
        action.set_defaults(act=act, parser=action)
        action.add_argument(
            "--history",
            metavar="DIR",
            type=Path,
            help="the folder of histories (default: history/ of the project)",
        )
        if act is add:
            action.add_argument("results", metavar="RESULTS", type=Path, nargs="+")
            continue
        action.add_argument("--device", metavar="KEY")
        action.add_argument("--row", metavar="GLOB", action="append", default=[])
        action.add_argument("--last", metavar="RUNS", type=_RUNS)
        action.add_argument("--least", metavar="PERCENT", type=float)
        if act is show:
            action.add_argument("--format", default="text")
            action.add_argument(
                "--report", metavar="FILE", type=Path, action="append", default=[]
            )


def main(arguments: argparse.Namespace) -> int:
    """Do what the action says; without one print the help and return 2."""
    code: int = arguments.act(arguments)
    return code


def add(arguments: argparse.Namespace) -> int:
    """Add the measured rows of some runs."""
    raise NotImplementedError


def show(arguments: argparse.Namespace) -> int:
    """Draw the trends."""
    raise NotImplementedError


def check(arguments: argparse.Namespace) -> int:
    """Find the change points; returns 1 where a newest one is a loss."""
    raise NotImplementedError
