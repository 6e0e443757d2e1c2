"""`llama-perf run`: what the pytest plugin runs, without pytest."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llama_perf.cli.selection import (
    add_baselines,
    add_run_options,
    add_selection,
    add_shared,
    run_options,
    selected,
    set_name,
)
from llama_perf.errors import SpecError
from llama_perf.files import check_writable
from llama_perf.gate import baselines
from llama_perf.report.markdown import as_markdown
from llama_perf.report.text import as_text
from llama_perf.rows import selection as row_sets
from llama_perf.rows.limit_overrides import ProjectLimits, project_limits
from llama_perf.run.compared_run import Against, Chosen, Recorder, advice
from llama_perf.run.options import OPTIONS, check_injections
from llama_perf.strict_json import to_line, write_atomically

if TYPE_CHECKING:
    from llama_perf.run.runner import Runner

HELP = "run rows and print the table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_selection(parser)
    add_run_options(parser)
    add_shared(parser, *OPTIONS)
    add_baselines(parser)
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="keep the results there after each row; '-' prints them as one JSON"
        " document, the last line of stdout",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run whose results --json names: rows it measured are taken"
        " over",
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path)
    parser.add_argument(
        "--compare",
        action="store_true",
        help="compare with this device's baseline; a missing one fails, and a row that"
        " looks slower or larger runs in fresh processes first",
    )
    parser.add_argument(
        "--no-confirm",
        dest="confirm",
        action="store_false",
        help="with --compare, run no fresh processes: a row that looks slower or larger"
        " is UNDECIDED",
    )
    parser.add_argument(
        "--on-undecided",
        choices=("fail", "report"),
        default="fail",
        help="with --compare, whether an UNDECIDED row fails (default) or is only"
        " reported",
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the selected rows; 1 where one failed, 130 after an interrupt."""
    to_stdout = arguments.json == "-"
    path = Path(arguments.json) if arguments.json and not to_stdout else None
    if path is not None:
        check_writable("json", path)
    if arguments.markdown is not None:
        check_writable("markdown", arguments.markdown)
    if arguments.resume and path is None:
        raise SpecError(
            "resume", arguments.json, "name the results of that run: --json FILE"
        )
    recorder, interrupted = _run_rows(arguments, path)
    report = recorder.report
    print(as_text(report))
    for line in advice(report, _chosen(arguments)):
        print(line)
    if arguments.markdown is not None:
        write_atomically(arguments.markdown, as_markdown(report))
    if to_stdout:
        print(to_line(report))
    if interrupted:
        left = report.selected - len(report.results)
        again = "; --resume continues" if path is not None else ""
        show_progress(f"interrupted before {left} of {report.selected} rows{again}\n")
        return 130
    return 1 if recorder.failed else 0


def _run_rows(
    arguments: argparse.Namespace, path: Path | None
) -> tuple[Recorder, bool]:
    """Run the rows with progress on stderr; whether an interrupt ended it."""
    rows = selected(arguments)
    options = replace(
        run_options(arguments),
        isolate=arguments.isolate,
        row_timeout_s=arguments.row_timeout,
        time_budget_s=arguments.time_budget,
        resume=path if arguments.resume else None,
        wait=arguments.wait,
    )
    check_injections(options, rows)
    # Told of before anything is measured.
    limits = project_limits(baselines.project_file())
    from llama_perf.run.runner import Runner

    with closing(Runner(rows, options=options, progress=show_progress)) as runner:
        against = _against(runner, arguments, limits) if arguments.compare else None
        runner.expect(None if against is None else against.baseline)
        recorder = Recorder(
            started=runner.started,
            environment=runner.environment,
            selected=len(rows),
            known=row_sets.load(
                set_name=set_name(arguments), file=arguments.rows, globs=()
            ),
            against=against,
            baselines_folder=arguments.baselines,
            path=path,
            again=_chosen(arguments).command("run", "--compare"),
            carried=runner.finished,
        )
        try:
            for number, row in enumerate(rows, start=1):
                show_progress(f"[{number}/{len(rows)}] {row.id}: ")
                result = runner.run_row(row, progress=_show_step)
                recorder.add(result)
                show_progress(f"{result.summary}\n")
        except KeyboardInterrupt:
            show_progress("\n")
            return recorder, True
    return recorder, False


def _against(
    runner: Runner, arguments: argparse.Namespace, limits: ProjectLimits
) -> Against:
    found = baselines.find(arguments.baselines, runner.environment.device_key)
    source, baseline = (str(found[0]), found[1]) if found else (None, None)
    return Against(
        baseline=baseline,
        source=source,
        missing_fails=True,
        undecided_fails=arguments.on_undecided == "fail",
        confirm=partial(runner.confirm, progress=show_progress)
        if arguments.confirm
        else None,
        limits=limits,
    )


def _chosen(arguments: argparse.Namespace) -> Chosen:
    return Chosen(
        set_name=set_name(arguments),
        rows_file=arguments.rows,
        checkpoints=arguments.checkpoints,
        baselines_folder=arguments.baselines,
        default_folder=baselines.default_folder(),
    )


def show_progress(text: str) -> None:
    """What a run is doing, on stderr."""
    print(text, end="", file=sys.stderr, flush=True)


def _show_step(text: str) -> None:
    show_progress(f"{text}, ")
