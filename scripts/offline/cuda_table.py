"""`scripts/cuda_table`: the large sets on a card, in pieces that can be continued.

    scripts/cuda_table --shard 1/3      # and 2/3, 3/3, each again until all is done
    scripts/cuda_table --merge          # one table, and this card's baseline

For the same machines as `scripts/cuda_check`. A piece is every n-th row of each set.
The same command run again continues where it stopped. Imports nothing that such a
machine may lack.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.offline.cuda_check import (
    announce_rehearsal,
    llama_perf,
    machine_problem,
    record_baseline,
    row_options,
)
from scripts.offline.kernel_archive import report_compiled, unpack_kernels
from scripts.offline.options import (
    ROOT,
    TABLE_SETS,
    add_machine_options,
    refuse,
    wheels_problem,
)
from scripts.offline.steps import GRACE_S, Step, StepRunner, until_interrupted
from scripts.offline.wheels import install_wheels

_SHARD = re.compile(r"([1-9]\d*)/([1-9]\d*)")
# Seconds that a piece needs after its rows, and seconds that a merge may take.
_KEEP_BACK_S = 10.0
_MERGE_S = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a piece or merge all; returns 0 if complete, 1 if not, 2 if refused."""
    arguments = _parser().parse_args(argv)
    return until_interrupted(
        lambda: _table(arguments),
        name="cuda_table",
        then="run the same command again, which goes on from here",
    )


def _table(arguments: argparse.Namespace) -> int:
    if (problem := _problem(arguments)) is not None:
        return refuse("cuda_table", problem)
    out: Path = arguments.out.absolute()
    runner = StepRunner(root=ROOT, out=out, budget_s=arguments.budget)
    if not arguments.merge:
        problem = machine_problem(runner, rehearse=arguments.rehearse)
        if problem is not None:
            return refuse("cuda_table", problem)
    out.mkdir(parents=True, exist_ok=True)
    if arguments.rehearse:
        announce_rehearsal(runner)
    with tempfile.TemporaryDirectory(prefix="cuda-table-") as scratch:
        install_wheels(runner, arguments.wheels, Path(scratch) / "site")
        if arguments.merge:
            complete = _merge(runner, Path(scratch))
        else:
            unpacked = unpack_kernels(runner, arguments.wheels)
            complete = _measure(runner, arguments, Path(scratch))
            report_compiled(runner, unpacked)
    print(f"\n{runner.summary()}\nresults: {out}")
    if not complete and not arguments.merge:
        print("not complete: run the same command again, which goes on from here")
    return 0 if complete and runner.all_ok else 1


def _problem(arguments: argparse.Namespace) -> str | None:
    """Why the options are refused, in one line; None if they are not."""
    shard = _SHARD.fullmatch(arguments.shard)
    if shard is None or int(shard[1]) > int(shard[2]):
        return f"shard: {arguments.shard!r} is not allowed; allowed: I/N, I from 1 to N"
    if (problem := wheels_problem(arguments)) is not None:
        return problem
    if arguments.merge and not _pieces(arguments.out):
        return f"out: {str(arguments.out)!r} has no pieces to merge"
    return None


def _pieces(out: Path) -> list[Path]:
    """The results of all pieces, in the order of the sets."""
    names = [*TABLE_SETS, "rehearsal"]
    return sorted(
        out.glob("*-of-*.json"),
        key=lambda path: (names.index(path.name.split("-")[0]), path.name),
    )


def _measure(runner: StepRunner, arguments: argparse.Namespace, scratch: Path) -> bool:
    """Measure every set's part of this piece; returns whether all rows are done."""
    number, count = arguments.shard.split("/")
    complete = True
    for name in ["rehearsal"] if arguments.rehearse else arguments.set or TABLE_SETS:
        results = runner.out / f"{name}-{number}-of-{count}.json"
        options = row_options(name, scratch, rehearse=arguments.rehearse)
        if results.exists():
            options.append("--resume")
        left = runner.left_s - _KEEP_BACK_S - GRACE_S
        options += ["--shard", arguments.shard, "--results", str(results)]
        step = Step(
            name=name,
            command=llama_perf("run", *options, "--time-budget", f"{max(left, 1):.0f}"),
            limit_s=float("inf"),
            log=f"{name}-{number}-of-{count}.txt",
            keep_back_s=_KEEP_BACK_S,
            shown=30,
        )
        runner.run(step)
        complete = _complete(results) and complete
    return complete


def _complete(results: Path) -> bool:
    """Whether a run had the time for all of its rows."""
    try:
        report = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    late = [
        row["id"]
        for row in report["results"]
        if row["status"] == "NOT_RUN" and "time-budget" in row.get("reason", "")
    ]
    return not late and len(report["results"]) >= report["selected"]


def _merge(runner: StepRunner, scratch: Path) -> bool:
    """Write one table of all pieces and a baseline; returns whether all are complete.

    The baseline has the rows that were measured.
    """
    pieces = _pieces(runner.out)
    words = [str(path) for path in pieces]
    for output, name in (("markdown", "results.md"), ("json", "results.json")):
        if output == "json":
            # With a heading it would be no JSON.
            runner.heading = ""
        runner.run(
            Step(
                name=name,
                command=llama_perf("report", *words, "--format", output),
                limit_s=_MERGE_S,
                log=name,
            )
        )
    record_baseline(runner, scratch, limit_s=_MERGE_S)
    return all(_complete(path) for path in pieces)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cuda_table",
        description="Measure the sets reference, published, filled, prefill and batch"
        " on a card in pieces, each within the budget, and merge them into one table"
        " and a baseline.",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        default="1/1",
        help="the piece: every N-th row of each set from the I-th on (default: all)",
    )
    parser.add_argument(
        "--set", action="append", choices=TABLE_SETS, help="only this set (repeatable)"
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="merge the pieces that --out holds instead of measuring",
    )
    add_machine_options(parser, out="cuda-table-results", budget_s=530)
    return parser
