"""`llama-perf compare`: another revision or environment compared with this one."""

import argparse
import os
import sys
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from llama_perf.cli.ending import end
from llama_perf.errors import SpecError, UserError
from llama_perf.files import CHECKOUT
from llama_perf.gate.blocks import MAX_BLOCKS, MIN_BLOCKS, TARGET_LOSS
from llama_perf.gate.pairs import PairsGate
from llama_perf.results.run import Report
from llama_perf.run.display import Display
from llama_perf.run.interrupts import Interruptible
from llama_perf.run.numbers import Number
from llama_perf.run.read_options import add_shared, request_of
from llama_perf.run.resume import left_undone
from llama_perf.run.revision import checked_out, resolve
from llama_perf.run.worker import PYTHON

HELP = "compare another revision or environment with this one, in pairs of processes"
_LEAST_PAIRS, _MAX_PAIRS = 2 * MIN_BLOCKS, 100
_PAIRS = Number(
    int,
    f"an even number from {_LEAST_PAIRS} to {_MAX_PAIRS}",
    lambda pairs: pairs % 2 == 0 and _LEAST_PAIRS <= pairs <= _MAX_PAIRS,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_shared(parser, "--set", "--rows", "--row", "--shard", "--checkpoints", "--wait")
    add_shared(parser, "--row-timeout", "--inject-slowdown", "--inject-damage")
    add_shared(parser, "--on-missing-baseline", "--on-undecided")
    add_shared(parser, "--results", "--report", "--markdown", "--columns")
    text = "the revision of this checkout to compare with (default with --base-python:"
    add_shared(parser, "--base", base=f"{text} the files as they are)")
    parser.add_argument(
        "--base-python",
        metavar="PATH",
        type=Path,
        help="the Python of another environment, which runs the base",
    )
    parser.add_argument(
        "--pairs",
        metavar="N",
        type=_PAIRS,
        default=2 * MAX_BLOCKS,
        help="run at most N pairs of each row, an even number; a clear row ends after"
        f" {_LEAST_PAIRS} (default: %(default)s)",
    )
    add_least(parser)


def add_least(parser: argparse.ArgumentParser) -> None:
    """Add the option of the loss that has to be found."""
    parser.add_argument(
        "--least",
        metavar="PERCENT",
        default=f"{TARGET_LOSS:.0%}",
        help="the loss of speed to look for: a row goes on until it is slower, or until"
        " so large a loss is excluded (default: 5%%)",
    )


def parse_least(text: str) -> float:
    """Parse "5%" or "5" to a share; raises SpecError."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0.01 <= share < 1:
        raise SpecError("least", text, "allowed: a percentage from 1% to 99%")
    return share


def main(arguments: argparse.Namespace) -> int:
    """Measure the pairs and print the table; 1 where a row failed."""
    request, python = request_of(arguments), arguments.base_python or PYTHON
    if arguments.base is None and arguments.base_python is None:
        raise UserError("compare: name a base: --base REV, --base-python PATH or both")
    gate = PairsGate(
        limits=request.limits,
        target_loss=parse_least(arguments.least),
        max_blocks=arguments.pairs // 2,
        missing_fails=request.on_missing_baseline == "fail",
        undecided_fails=request.on_undecided == "fail",
    )
    if not (os.path.isfile(python) and os.access(python, os.X_OK)):
        raise SpecError("base-python", str(python), "name an interpreter's file")
    commit = None if arguments.base is None else resolve(arguments.base)
    rows = request.selected()
    # They import torch, and a mistake above is reported sooner without.
    from llama_perf.run.lock import locked
    from llama_perf.run.paired import PairedProcesses, Side
    from llama_perf.run.paired_run import PairedRun
    from llama_perf.run.session import Session

    started = datetime.now(UTC).isoformat(timespec="seconds")
    session = Session({row.device for row in rows}, options=request)
    display = Display.on(sys.stderr)
    lock = locked(session.device, wait=request.wait, notify=display.note)
    words, sources = ["--least", arguments.least], []
    if arguments.base is not None:
        sources.append(arguments.base)
    if arguments.base_python is not None:
        sources.append(str(arguments.base_python))
        words += ["--base-python", sources[-1]]
    if commit is not None:
        sources.append(f"commit {commit[:12]}")
    report = Report(
        started=started,
        environment=session.environment,
        selected=len(rows),
        again=tuple(request.command("compare", *words)),
        baseline_source=", ".join(sources),
    )
    with (
        nullcontext(CHECKOUT) if commit is None else checked_out(commit) as package,
        lock,
        # Links stay, since they decide its packages.
        closing(
            PairedProcesses(
                rows,
                options=request,
                base=Side(package=package, python=python.absolute()),
            )
        ) as processes,
    ):
        run = PairedRun(report, gate, processes, path=request.results)
        display.plan_rows([(row, "") for row in rows])
        with Interruptible() as block:
            for row in rows:
                run.run_row(row, display)
    lines = []
    if block.code is not None:
        again = "a comparison cannot be continued, only run again"
        lines = [f"{left_undone(run.report, block.code)}; {again}"]
    return end(run.report, request, file=run.file, interrupted=block.code, advice=lines)
