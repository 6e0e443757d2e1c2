"""The options that several commands share: which rows, where baselines lie."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from llama_perf.errors import SpecError
from llama_perf.gate import baselines as baseline
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import INJECT_DAMAGE, OPTIONS, RunOptions, Slowdown


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add `--set`, `--rows`, `--row` and `--shard`."""
    parser.add_argument("--set", metavar="NAME", help="a set of rows of the package")
    parser.add_argument("--rows", metavar="FILE", type=Path, help="a file of rows")
    parser.add_argument(
        "--row",
        metavar="GLOB",
        action="append",
        default=[],
        help="only rows whose id matches (repeatable)",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="every N-th of these rows from the I-th on: one of several runs' share",
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
    parser.add_argument("--inject-damage", **INJECT_DAMAGE)


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
    from llama_perf.devices.device import unasked_device

    return selection.DEFAULT_SETS[unasked_device()]


def selected(arguments: argparse.Namespace) -> list[RowSpec]:
    """The selected rows; raises UserError."""
    found = selection.load(
        set_name=set_name(arguments), file=arguments.rows, globs=arguments.row
    )
    return found if arguments.shard is None else shard(found, arguments.shard)


def shard(found: list[RowSpec], text: str) -> list[RowSpec]:
    """The part "I/N" of some rows: every N-th from the I-th on; raises SpecError."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count <= len(found):
        raise SpecError(
            "shard",
            text,
            f"allowed: I/N, I from 1 to N and N up to the {len(found)} rows selected",
        )
    return found[number - 1 :: count]


def run_options(arguments: argparse.Namespace) -> RunOptions:
    """The run's options; raises SpecError."""
    folder = arguments.checkpoints
    if folder is not None and not folder.is_dir():
        raise SpecError("checkpoints", str(folder), "no such folder")
    return RunOptions(
        checkpoints=folder,
        slowdowns=tuple(Slowdown.parse(text) for text in arguments.inject_slowdown),
        damages=tuple(arguments.inject_damage),
    )
