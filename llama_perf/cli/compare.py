"""`llama-perf compare`: another revision or environment beside this one, in pairs."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from llama_perf.cli.run import show_progress
from llama_perf.cli.selection import (
    add_run_options,
    add_selection,
    add_shared,
    run_options,
    selected,
    set_name,
)
from llama_perf.errors import SpecError, UserError
from llama_perf.files import check_writable
from llama_perf.gate.baselines import default_folder, project_file
from llama_perf.gate.thresholds import THRESHOLDS
from llama_perf.report.markdown import as_markdown
from llama_perf.report.text import as_text
from llama_perf.results.run import Report
from llama_perf.rows.limit_overrides import project_limits
from llama_perf.run.compared_run import Chosen
from llama_perf.run.options import check_injections
from llama_perf.run.paired import Side, check_pairs, compare_pairs, measure_pairs
from llama_perf.run.revision import checked_out, resolve
from llama_perf.strict_json import to_json, write_atomically

HELP = "measure another revision or environment beside this one, in pairs of processes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_selection(parser)
    add_run_options(parser)
    add_shared(parser, "--row-timeout", "--wait")
    parser.add_argument(
        "--base",
        metavar="REV",
        help="the revision of this checkout to compare with (default: the files as they"
        " are, where --base-python is given)",
    )
    parser.add_argument(
        "--base-python",
        metavar="PATH",
        type=Path,
        help="the interpreter of another environment, for the base",
    )
    parser.add_argument(
        "--pairs",
        metavar="N",
        type=int,
        default=THRESHOLDS.confirm_processes,
        help="processes of each row and side (default: %(default)s)",
    )
    parser.add_argument(
        "--on-missing-baseline",
        choices=("fail", "report"),
        default="fail",
        help="whether a row that the base cannot run fails (default) or is only"
        " reported",
    )
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--markdown", metavar="FILE", type=Path)


def main(arguments: argparse.Namespace) -> int:
    """Measure the pairs and print the table; 1 where a row failed."""
    for name in ("json", "markdown"):
        if (path := getattr(arguments, name)) is not None:
            check_writable(name, path)
    if arguments.base is None and arguments.base_python is None:
        raise UserError("compare: name a base: --base REV, --base-python PATH or both")
    check_pairs(arguments.pairs)
    python = _python(arguments.base_python)
    commit = None if arguments.base is None else resolve(arguments.base)
    with nullcontext() if commit is None else checked_out(commit) as folder:
        report = _report(arguments, Side(package=folder, python=python))
    print(as_text(report), end="")
    if arguments.json is not None:
        write_atomically(arguments.json, to_json(report))
    if arguments.markdown is not None:
        write_atomically(arguments.markdown, as_markdown(report))
    return 1 if any(each.failed for each in report.comparisons) else 0


def _python(path: Path | None) -> Path | None:
    """As it was named: the file it links to knows no environment."""
    if path is None:
        return None
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise SpecError("base-python", str(path), "name an interpreter's file")
    return path.absolute()


def _report(arguments: argparse.Namespace, base: Side) -> Report:
    rows = selected(arguments)
    options = replace(
        run_options(arguments),
        row_timeout_s=arguments.row_timeout,
        wait=arguments.wait,
    )
    check_injections(options, rows)
    limits = project_limits(project_file())
    # They import torch, which a mistake above does without.
    from llama_perf.run.lock import held
    from llama_perf.run.session import Session

    session = Session(rows, options=options)
    with held(session.device, wait=options.wait, progress=show_progress):
        found, environments = measure_pairs(
            rows,
            {"base": base, "head": Side()},
            pairs=arguments.pairs,
            options=options,
            progress=show_progress,
        )
    judged = compare_pairs(
        found,
        missing_fails=arguments.on_missing_baseline == "fail",
        limits=limits,
    )
    head = environments.get("head", session.environment)
    return Report(
        started=session.started,
        environment=head,
        selected=len(rows),
        again=tuple(_again(arguments)),
        results=tuple(result for result, _ in judged),
        comparisons=tuple(comparison for _, comparison in judged),
        baseline_source=_source(arguments),
        environment_changes=environments.get("base", head).changes(head),
    )


def _source(arguments: argparse.Namespace) -> str:
    named = [arguments.base, arguments.base_python]
    base = ", ".join(str(each) for each in named if each is not None)
    return f"{base}, in {arguments.pairs} pairs of processes"


def _again(arguments: argparse.Namespace) -> list[str]:
    words = ["compare", "--pairs", str(arguments.pairs)]
    for name in ("base", "base_python"):
        if (value := getattr(arguments, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    chosen = Chosen(
        set_name=set_name(arguments),
        rows_file=arguments.rows,
        checkpoints=arguments.checkpoints,
        # It reads no baseline.
        baselines_folder=default_folder(),
        default_folder=default_folder(),
    )
    return chosen.command(*words)
