"""`llama-perf compare`: another revision or environment compared with this one."""

import argparse
import os
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from llama_perf.errors import SpecError, UserError, check_count
from llama_perf.files import CHECKOUT, write_atomically
from llama_perf.gate.pairs import MIN_PAIRS, compare_pairs
from llama_perf.gate.thresholds import CONFIRM_PROCESSES
from llama_perf.report.text import as_text
from llama_perf.results.run import Report
from llama_perf.run.display import Display
from llama_perf.run.fresh_processes import measure_pairs
from llama_perf.run.options import add_shared, request_of
from llama_perf.run.revision import checked_out, resolve
from llama_perf.run.worker import PYTHON
from llama_perf.strict_json import to_json, to_line

HELP = "compare another revision or environment with this one, in pairs of processes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_shared(parser, "--set", "--rows", "--row", "--shard", "--checkpoints", "--wait")
    add_shared(parser, "--row-timeout", "--inject-slowdown", "--inject-damage")
    add_shared(parser, "--on-missing-baseline", "--results", "--report", "--markdown")
    parser.add_argument(
        "--base",
        metavar="REV",
        help="the revision of this checkout to compare with (default with"
        " --base-python: the files as they are)",
    )
    parser.add_argument(
        "--base-python",
        metavar="PATH",
        type=Path,
        help="the Python of another environment, which runs the base",
    )
    parser.add_argument(
        "--pairs",
        metavar="N",
        type=int,
        default=CONFIRM_PROCESSES,
        help="run each row in N processes of each side (default: %(default)s)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Measure the pairs and print the table; 1 where a row failed."""
    request, python = request_of(arguments), arguments.base_python or PYTHON
    if arguments.base is None and arguments.base_python is None:
        raise UserError("compare: name a base: --base REV, --base-python PATH or both")
    check_count("pairs", arguments.pairs, MIN_PAIRS)
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise SpecError("base-python", str(python), "name an interpreter's file")
    commit = None if arguments.base is None else resolve(arguments.base)
    rows = request.selected()
    # They import torch, and a mistake above is reported sooner without.
    from llama_perf.run.lock import locked
    from llama_perf.run.session import Session

    started = datetime.now(UTC).isoformat(timespec="seconds")
    session = Session({row.device for row in rows}, options=request)
    display = Display.on(sys.stderr)
    lock = locked(session.device, wait=request.wait, notify=display.note)
    with (
        nullcontext(CHECKOUT) if commit is None else checked_out(commit) as package,
        lock,
    ):
        pairs, environments = measure_pairs(
            rows,
            package=package,
            # Links stay, since they decide its packages.
            python=python.absolute(),
            pairs=arguments.pairs,
            options=request,
            display=display,
        )
    fails = request.on_missing_baseline == "fail"
    judged = compare_pairs(pairs, missing_fails=fails, limits=request.limits)
    head = environments.get("head", session.environment)
    named = {"--base": arguments.base, "--base-python": arguments.base_python}
    bases = {name: str(value) for name, value in named.items() if value is not None}
    words = ["--pairs", str(arguments.pairs), *chain.from_iterable(bases.items())]
    report = Report(
        started=started,
        environment=head,
        selected=len(rows),
        again=tuple(request.command("compare", *words)),
        results=tuple(result for result, _ in judged),
        comparisons=tuple(comparison for _, comparison in judged),
        baseline_source=f"{', '.join(bases.values())}, in {arguments.pairs} pairs of"
        " processes",
        environment_changes=environments.get("base", head).changes(head),
    )
    print(as_text(report), end="")
    if request.results is not None:
        write_atomically(request.results, to_json(report))
    request.write_reports(report)
    if request.print_results:
        print(to_line(report))
    return 1 if report.failed else 0
