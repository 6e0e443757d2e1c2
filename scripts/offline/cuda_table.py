"""`scripts/cuda_table`: the large sets on a card, in pieces that can be continued.

    scripts/cuda_table --shard 1/3      # and 2/3, 3/3, each again until all is done
    scripts/cuda_table --merge          # one table, and this card's baseline

For the same machines as `scripts/cuda_check`. A piece is every n-th row of each set.
The same command run again continues where it stopped. Imports nothing that such a
machine may lack.
"""

import argparse
import json
import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from scripts.offline.cuda_check import draw, llama_perf, record_baseline, row_options
from scripts.offline.machine import machine_parser, refuse, run_script
from scripts.offline.steps import GRACE_S, Status, Step, StepRunner

TABLE_SETS = ("reference", "published", "filled", "prefill", "batch")
_CONTINUE = "run the same command again, which goes on from here"
# Seconds that a piece needs after its rows, and seconds that a merge may take.
_KEEP_BACK_S = 10.0
_MERGE_S = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a piece or merge all; returns 0 if complete, 1 if not, 2 if refused."""
    parser = machine_parser(
        "cuda_table",
        "Measure the sets reference, published, filled, prefill and batch"
        " on a card in pieces, each within the budget, and merge them into one table"
        " and a baseline.",
        budget_s=530,
    )
    add = parser.add_argument
    text = "the piece: every N-th row of each set from the I-th on (default: all)"
    add("--shard", metavar="I/N", default="1/1", help=text)
    text = "only this set (repeatable)"
    add("--set", action="append", choices=TABLE_SETS, help=text)
    text = "merge the pieces that --out holds instead of measuring"
    add("--merge", action="store_true", help=text)
    arguments = parser.parse_args(argv)
    shard, out = arguments.shard, arguments.out
    numbers = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard)
    if numbers is None or int(numbers[1]) > int(numbers[2]):
        allowed = "allowed: I/N, I from 1 to N"
        return refuse("cuda_table", f"shard: {shard!r} is not allowed; {allowed}")
    if arguments.merge and not _pieces(out):
        return refuse("cuda_table", f"out: {str(out)!r} has no pieces to merge")
    work = _merge if arguments.merge else partial(_measure, arguments)
    measures = not arguments.merge
    return run_script("cuda_table", arguments, work, then=_CONTINUE, measures=measures)


def _pieces(out: Path) -> list[Path]:
    """The results of all pieces, in the order of the sets."""
    names = [*TABLE_SETS, "rehearsal"]
    return sorted(
        out.glob("*-of-*.json"),
        key=lambda path: (names.index(path.name.split("-")[0]), path.name),
    )


def _measure(arguments: argparse.Namespace, runner: StepRunner, scratch: Path) -> None:
    piece = arguments.shard.replace("/", "-of-")
    complete = True
    for name in ["rehearsal"] if arguments.rehearse else arguments.set or TABLE_SETS:
        results = runner.out / f"{name}-{piece}.json"
        options = row_options(name, scratch, rehearse=arguments.rehearse)
        if results.exists():
            options.append("--resume")
        left = max(runner.left_s - _KEEP_BACK_S - GRACE_S, 1)
        options += ["--shard", arguments.shard, "--results", str(results)]
        command = llama_perf("run", *options, "--time-budget", f"{left:.0f}")
        runner.run(Step(results.stem, command, math.inf, keep_back_s=_KEEP_BACK_S))
        complete = _is_complete(results) and complete
    if not complete:
        runner.note("rows", Status.OUT_OF_TIME, f"not complete: {_CONTINUE}")


def _is_complete(results: Path) -> bool:
    """Whether a run had the time for all of its rows."""
    try:
        report = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    late = any(
        row["status"] == "NOT_RUN" and "time-budget" in row.get("reason", "")
        for row in report["results"]
    )
    return not late and len(report["results"]) >= report["selected"]


def _merge(runner: StepRunner, scratch: Path) -> None:
    """Write one table of all pieces, and a baseline of the rows that were measured."""
    pieces = _pieces(runner.out)
    for name in ("results.md", "results.json"):
        draw(runner, name, pieces, limit_s=_MERGE_S)
    record_baseline(runner, scratch, limit_s=_MERGE_S)
    for path in pieces:
        if not _is_complete(path):
            runner.note(path.stem, Status.OUT_OF_TIME, "not all rows are measured")
