"""`scripts/cuda_table`: the large sets on a card, in pieces that can be continued.

    scripts/cuda_table --shard 1/3      # and 2/3, 3/3, each again until all is done
    scripts/cuda_table --merge          # one table, and this card's baseline

For the same machines as `scripts/cuda_check`. A piece is every n-th row of each set;
run again with the same words it continues where it stopped. Imports nothing that such a
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
    REHEARSAL,
    REHEARSAL_ROWS,
    ROOT,
    llama_perf,
    unusable,
    without_invalid,
)
from scripts.offline.kernel_archive import (
    bring_kernels,
    install,
    no_wheels,
    tell_compiled,
)
from scripts.offline.options import add_machine_options, refuse
from scripts.offline.steps import GRACE_S, Runner, Step, until_interrupted

SETS = ("reference", "published", "filled", "prefill", "batch")
_SHARD = re.compile(r"([1-9]\d*)/([1-9]\d*)")
# Seconds: what ends a piece once its rows are stopped, and what a merge takes.
_KEPT_BACK_S = 10.0
_MERGE_S = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a piece or merge all; 0 where it is complete, 1 where not, 2 refused."""
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
    runner = Runner(root=ROOT, out=out, budget_s=arguments.budget)
    if not arguments.merge:
        problem = unusable(runner, rehearse=arguments.rehearse)
        if problem is not None:
            return refuse("cuda_table", problem)
    out.mkdir(parents=True, exist_ok=True)
    if arguments.rehearse:
        runner.heading = REHEARSAL
        print(REHEARSAL, flush=True)
    with tempfile.TemporaryDirectory(prefix="cuda-table-") as scratch:
        install(runner, arguments.wheels, Path(scratch) / "site")
        if arguments.merge:
            complete = _merge(runner, Path(scratch))
        else:
            brought = bring_kernels(runner, arguments.wheels)
            complete = _measure(runner, arguments, Path(scratch))
            tell_compiled(runner, brought)
    print(f"\n{runner.summary()}\nresults: {out}")
    if not complete and not arguments.merge:
        print("not complete: run the same command again, which goes on from here")
    return 0 if complete and runner.all_ok else 1


def _problem(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the options, in one line."""
    shard = _SHARD.fullmatch(arguments.shard)
    if shard is None or int(shard[1]) > int(shard[2]):
        return f"shard: {arguments.shard!r} is not allowed; allowed: I/N, I from 1 to N"
    if (problem := no_wheels(arguments)) is not None:
        return problem
    if arguments.merge and not _pieces(arguments.out):
        return f"out: {str(arguments.out)!r} has no pieces to merge"
    return None


def _pieces(out: Path) -> list[Path]:
    """The results of all pieces, in the order of the sets."""
    found = [path for path in out.glob("*.json") if "-of-" in path.name]
    names = [*SETS, "rehearsal"]
    return sorted(
        found, key=lambda path: (names.index(path.name.split("-")[0]), path.name)
    )


def _measure(runner: Runner, arguments: argparse.Namespace, scratch: Path) -> bool:
    """Every set's part of this piece; whether all rows of it are done."""
    number, count = arguments.shard.split("/")
    complete = True
    for name in ["rehearsal"] if arguments.rehearse else arguments.set or SETS:
        results = runner.out / f"{name}-{number}-of-{count}.json"
        options = ["--set", name]
        if arguments.rehearse:
            file = scratch / "rehearsal.toml"
            file.write_text(REHEARSAL_ROWS, encoding="utf-8")
            options = ["--rows", str(file)]
        if results.exists():
            options.append("--resume")
        left = runner.left_s - _KEPT_BACK_S - GRACE_S
        options += ["--shard", arguments.shard, "--json", str(results)]
        step = Step(
            name=name,
            command=llama_perf("run", *options, "--time-budget", f"{max(left, 1):.0f}"),
            limit_s=float("inf"),
            log=f"{name}-{number}-of-{count}.txt",
            keep_back_s=_KEPT_BACK_S,
            shown=30,
        )
        runner.run(step)
        complete = _complete(results) and complete
    return complete


def _complete(results: Path) -> bool:
    """Whether a run got to all of its rows, none of them left for want of time."""
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


def _merge(runner: Runner, scratch: Path) -> bool:
    """One table of all pieces, and the baseline of the rows that were measured."""
    pieces = _pieces(runner.out)
    words = [str(path) for path in pieces]
    for form, name in (("markdown", "results.md"), ("json", "results.json")):
        if form == "json":
            # A heading would make it another document.
            runner.heading = ""
        runner.run(
            Step(
                name=name,
                command=llama_perf("report", *words, "--format", form),
                limit_s=_MERGE_S,
                log=name,
            )
        )
    measured = scratch / "measured.json"
    if left_out := without_invalid(runner.out / "results.json", measured):
        print(f"not recorded, since INVALID: {', '.join(left_out)}", flush=True)
    options = ["--from", str(measured), "--baselines", str(runner.out / "baselines")]
    runner.run(
        Step(
            name="baseline",
            command=llama_perf("baseline", "record", *options),
            limit_s=_MERGE_S,
            shown=5,
        )
    )
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
        "--set",
        action="append",
        choices=SETS,
        help="only this set (repeatable)",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="merge the pieces that --out holds instead of measuring",
    )
    add_machine_options(parser, out="cuda-table-results", budget_s=530)
    return parser
