"""`llama-perf run`: what the pytest plugin runs, without pytest."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llama_perf import baseline as baselines
from llama_perf import rows as row_sets
from llama_perf.codec import to_json, write_atomically
from llama_perf.commands.selection import (
    add_baselines,
    add_run_options,
    add_selection,
    run_options,
    selected,
    set_name,
)
from llama_perf.recorder import Against, Recorder, advice, record_command
from llama_perf.recording import confirmation
from llama_perf.records import Report
from llama_perf.report.render import as_markdown, as_text
from llama_perf.run_options import check_slowdowns
from llama_perf.writable import check_writable

if TYPE_CHECKING:
    from llama_perf.run import Session
    from llama_perf.spec import RowSpec

HELP = "run rows and print the table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_selection(parser)
    add_run_options(parser)
    add_baselines(parser)
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="keep the results there after each row; '-' prints them as one JSON"
        " document, the last line of stdout",
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path)
    parser.add_argument(
        "--compare",
        action="store_true",
        help="compare with this device's baseline; a missing one fails, and a row that"
        " looks slower runs in fresh processes first",
    )
    parser.add_argument(
        "--no-confirm",
        dest="confirm",
        action="store_false",
        help="with --compare, run no fresh processes: a row that looks slower is"
        " UNDECIDED",
    )
    parser.add_argument(
        "--on-undecided",
        choices=("fail", "report"),
        default="fail",
        help="with --compare, whether an UNDECIDED row fails (default) or is only"
        " reported",
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the selected rows; 1 where one failed."""
    to_stdout = arguments.json == "-"
    path = Path(arguments.json) if arguments.json and not to_stdout else None
    if path is not None:
        check_writable("json", path)
    if arguments.markdown is not None:
        check_writable("markdown", arguments.markdown)
    recorder = run_rows(
        selected(arguments), arguments, path=path, compare=arguments.compare
    )
    report = recorder.report
    print(as_text(report))
    for line in _advice(report, arguments):
        print(line)
    if arguments.markdown is not None:
        write_atomically(arguments.markdown, as_markdown(report))
    if to_stdout:
        print(one_line(to_json(report)))
    return 1 if recorder.failed else 0


def run_rows(
    rows: list[RowSpec],
    arguments: argparse.Namespace,
    *,
    path: Path | None,
    compare: bool,
) -> Recorder:
    """Run `rows` with progress on stderr, keeping results in `path`."""
    options = run_options(arguments)
    check_slowdowns(options.slowdowns, rows)
    from llama_perf.run import Session

    session = Session(rows, options=options)
    recorder = Recorder(
        started=session.started,
        environment=session.environment,
        selected=len(rows),
        known=row_sets.load(
            set_name=set_name(arguments), file=arguments.rows, globs=()
        ),
        against=_against(session, arguments) if compare else None,
        baselines_folder=arguments.baselines,
        path=path,
    )
    for number, row in enumerate(rows, start=1):
        show_progress(f"[{number}/{len(rows)}] {row.id}: ")
        result = session.run_row(row, progress=lambda text: show_progress(f"{text}, "))
        recorder.add(result)
        show_progress(f"{result.told}\n")
    return recorder


def _against(session: Session, arguments: argparse.Namespace) -> Against:
    found = baselines.find(arguments.baselines, session.environment.device_key)
    source, baseline = (str(found[0]), found[1]) if found else (None, None)
    return Against(
        baseline=baseline,
        source=source,
        missing_fails=True,
        undecided_fails=arguments.on_undecided == "fail",
        confirm=partial(confirmation, options=session.options, progress=show_progress)
        if arguments.confirm
        else None,
    )


def _advice(report: Report, arguments: argparse.Namespace) -> list[str]:
    return advice(
        report,
        command=record_command(
            set_name=set_name(arguments),
            rows_file=arguments.rows,
            checkpoints=arguments.checkpoints,
            baselines_folder=arguments.baselines,
            default_folder=baselines.default_folder(),
        ),
        folder=arguments.baselines,
    )


def one_line(document: str) -> str:
    """A JSON document on one line."""
    return json.dumps(json.loads(document))


def show_progress(text: str) -> None:
    """What a run is doing, on stderr."""
    print(text, end="", file=sys.stderr, flush=True)
