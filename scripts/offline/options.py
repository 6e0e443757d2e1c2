"""Options and names that the scripts for a machine without network share.

Standard library only, since such a machine may lack everything else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE_SETS = ("reference", "published", "filled", "prefill", "batch")
"""The sets of rows that `scripts/cuda_table` measures."""


def refuse(script: str, reason: str) -> int:
    """Print in one line why `script` does not run; returns its exit code."""
    print(f"{script}: error: {reason}", file=sys.stderr)
    return 2


def add_machine_options(
    parser: argparse.ArgumentParser, *, out: str, budget_s: int
) -> None:
    """Add the options of every script for such a machine, with their defaults."""
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="take the packages that this Python lacks from these wheels (default:"
        " wheelhouse/, if it exists)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path(out),
        help=f"write the results into this folder (default: {out})",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        default=float(budget_s),
        help=f"time for all steps together (default: {budget_s})",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run the same steps on the CPU with a tiny model",
    )


def wheels_problem(arguments: argparse.Namespace) -> str | None:
    """Why the value of `--wheels` cannot be used, None if it can."""
    if arguments.wheels is None or arguments.wheels.is_dir():
        return None
    return f"wheels: {str(arguments.wheels)!r} is no folder"


def wheelhouse_of(folder: Path | None) -> Path | None:
    """`folder` itself, else the checkout's `wheelhouse/`, None if there is neither."""
    default = ROOT / "wheelhouse"
    return default if folder is None and default.is_dir() else folder
