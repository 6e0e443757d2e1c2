"""What every script for a machine with a card and no network takes.

Standard library alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def refuse(script: str, reason: str) -> int:
    """Say why `script` does not run, in one line; the exit code for it."""
    print(f"{script}: error: {reason}", file=sys.stderr)
    return 2


def add_machine_options(
    parser: argparse.ArgumentParser, *, out: str, budget_s: int
) -> None:
    """Add what every script for such a machine takes, with its defaults."""
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="wheels to take what this Python lacks from (default: wheelhouse/, if"
        " there is one)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path(out))
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        default=float(budget_s),
        help=f"for all steps together (default: {budget_s})",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run the same steps on the CPU with a tiny model",
    )
