"""The options that several commands share: which rows, where baselines lie."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama_perf import baseline, rows
from llama_perf.errors import SpecError
from llama_perf.run_options import OPTIONS, RunOptions, Slowdown
from llama_perf.spec import RowSpec


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add `--set`, `--rows` and `--row`."""
    parser.add_argument("--set", metavar="NAME", help="a set of rows of the package")
    parser.add_argument("--rows", metavar="FILE", type=Path, help="a file of rows")
    parser.add_argument(
        "--row",
        metavar="GLOB",
        action="append",
        default=[],
        help="only rows whose id matches (repeatable)",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what running rows takes besides the selection."""
    parser.add_argument(
        "--checkpoints",
        metavar="DIR",
        type=Path,
        help="where a row's model is looked for by its name (else synthetic weights)",
    )
    parser.add_argument(
        "--inject-slowdown",
        metavar="GLOB=PERCENT",
        action="append",
        default=[],
        help="development switch: repeat that share of the decoding steps",
    )


def add_shared(parser: argparse.ArgumentParser, *options: str) -> None:
    """Add options that pytest has too."""
    for option in options:
        parser.add_argument(option, **OPTIONS[option])


def add_baselines(parser: argparse.ArgumentParser) -> None:
    """Add `--baselines`."""
    parser.add_argument(
        "--baselines",
        metavar="DIR",
        type=Path,
        default=baseline.default_folder(),
        help="the folder of baselines (default: baselines/ of the checkout)",
    )


def set_name(arguments: argparse.Namespace) -> str | None:
    """The set that was asked for, else this machine's default one."""
    if arguments.set is not None or arguments.rows is not None:
        chosen: str | None = arguments.set
        return chosen
    from llama_perf.environment import default_device

    return rows.DEFAULT_SETS[default_device()]


def selected(arguments: argparse.Namespace) -> list[RowSpec]:
    """The selected rows; raises UserError."""
    return rows.load(
        set_name=set_name(arguments), file=arguments.rows, globs=arguments.row
    )


def run_options(arguments: argparse.Namespace) -> RunOptions:
    """The run's options; raises SpecError."""
    folder = arguments.checkpoints
    if folder is not None and not folder.is_dir():
        raise SpecError("checkpoints", str(folder), "no such folder")
    return RunOptions(
        checkpoints=folder,
        slowdowns=tuple(Slowdown.parse(text) for text in arguments.inject_slowdown),
    )
