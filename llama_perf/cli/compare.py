"""`llama-perf compare`: another revision or environment compared with this one."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

from llama_perf.cli.run import check_outputs, show_progress
from llama_perf.errors import SpecError, UserError
from llama_perf.files import write_atomically
from llama_perf.gate.thresholds import THRESHOLDS
from llama_perf.report.text import as_text
from llama_perf.results.run import Report
from llama_perf.run.options import add_arguments as add_shared
from llama_perf.run.options import request_of
from llama_perf.run.paired import Side, check_pairs, compare_pairs, measure_pairs
from llama_perf.run.request import RunRequest
from llama_perf.run.revision import checked_out, resolve
from llama_perf.strict_json import to_json, to_line

HELP = "compare another revision or environment with this one, in pairs of processes"
_SHARED = (
    *("--set", "--rows", "--row", "--shard", "--checkpoints", "--inject-slowdown"),
    *("--inject-damage", "--row-timeout", "--wait", "--on-missing-baseline"),
    *("--results", "--report", "--markdown"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_shared(parser, *_SHARED)
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
        default=THRESHOLDS.confirm_processes,
        help="run each row in N processes of each side (default: %(default)s)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Measure the pairs and print the table; 1 where a row failed."""
    request = request_of(arguments)
    check_outputs(request)
    if arguments.base is None and arguments.base_python is None:
        raise UserError("compare: name a base: --base REV, --base-python PATH or both")
    check_pairs(arguments.pairs)
    python = _python(arguments.base_python)
    commit = None if arguments.base is None else resolve(arguments.base)
    with nullcontext() if commit is None else checked_out(commit) as folder:
        report = _report(arguments, request, Side(package=folder, python=python))
    print(as_text(report), end="")
    if request.results is not None:
        write_atomically(request.results, to_json(report))
    request.write_reports(report)
    if request.print_results:
        print(to_line(report))
    return 1 if any(comparison.failed for comparison in report.comparisons) else 0


def _python(path: Path | None) -> Path | None:
    """The interpreter's absolute path; links stay, since they decide its packages."""
    if path is None:
        return None
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise SpecError("base-python", str(path), "name an interpreter's file")
    return path.absolute()


def _report(arguments: argparse.Namespace, request: RunRequest, base: Side) -> Report:
    rows = request.selection.rows()
    request.run.check_injections(rows)
    # They import torch, and a mistake above is reported sooner without.
    from llama_perf.run.lock import locked
    from llama_perf.run.session import Session

    started = datetime.now(UTC).isoformat(timespec="seconds")
    session = Session({row.device for row in rows}, options=request.run)
    with locked(session.device, wait=request.run.wait, progress=show_progress):
        pairs, environments = measure_pairs(
            rows,
            {"base": base, "head": Side()},
            pairs=arguments.pairs,
            options=request.run,
            progress=show_progress,
        )
    judged = compare_pairs(
        pairs,
        missing_fails=request.compare.missing_fails,
        limits=request.compare.limits,
    )
    head = environments.get("head", session.environment)
    named = {"--base": arguments.base, "--base-python": arguments.base_python}
    options = {name: str(value) for name, value in named.items() if value is not None}
    words = ["--pairs", str(arguments.pairs)]
    words += [word for option in options.items() for word in option]
    return Report(
        started=started,
        environment=head,
        selected=len(rows),
        again=tuple(request.command("compare", *words)),
        results=tuple(result for result, _ in judged),
        comparisons=tuple(comparison for _, comparison in judged),
        baseline_source=f"{', '.join(options.values())}, in {arguments.pairs} pairs of"
        " processes",
        environment_changes=environments.get("base", head).changes(head),
    )
