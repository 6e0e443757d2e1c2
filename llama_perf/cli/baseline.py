"""`llama-perf baseline`: record this device's baseline, or look at the stored ones."""

from __future__ import annotations

import argparse

from llama_perf.cli import baseline_record, baseline_show
from llama_perf.cli.selection import add_baselines

HELP = "record this device's baseline, or show, compare and check the stored ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    record = actions.add_parser("record", help="run rows and store them")
    baseline_record.add_arguments(record)
    record.set_defaults(act=baseline_record.main)
    show = actions.add_parser("show", help="print the stored baselines")
    show.set_defaults(act=baseline_show.show)
    diff = actions.add_parser("diff", help="what changed in them since a revision")
    diff.add_argument(
        "old",
        metavar="REV|FILE",
        nargs="?",
        default="HEAD",
        help="a revision of this checkout, or a baseline's file (default: HEAD)",
    )
    diff.set_defaults(act=baseline_show.diff)
    check = actions.add_parser("check", help="1 where one is damaged, stale or poor")
    check.set_defaults(act=baseline_show.check)
    for action in (record, show, diff, check):
        add_baselines(action)
    for action in (show, diff, check):
        action.add_argument(
            "--device", metavar="KEY", help="one device's (default: all)"
        )


def main(arguments: argparse.Namespace) -> int:
    """Do what the action says."""
    code: int = arguments.act(arguments)
    return code
