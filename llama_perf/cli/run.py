"""`llama-perf run`: what the pytest plugin runs, without pytest."""

import argparse
import sys
from contextlib import closing

from llama_perf.report.text import as_text
from llama_perf.run import options
from llama_perf.strict_json import to_line

HELP = "run rows and print the table"
add_arguments = options.add_shared


def main(arguments: argparse.Namespace) -> int:
    """Run the selected rows; 1 where one failed, 130 after an interrupt."""
    request = options.request_of(arguments)
    rows = request.selected()
    # It imports torch, and a mistake in the options is reported sooner without.
    from llama_perf.run.compared_run import ComparedRun

    interrupted = False
    with closing(ComparedRun(rows, request, progress=show_progress)) as run:
        try:
            for row in rows:
                run.run_row(row)
                show_progress("\n")
        except KeyboardInterrupt:
            interrupted = True
            show_progress("\n")
    report = run.report
    print(as_text(report))
    for line in run.write_report():
        print(line)
    if request.print_results:
        print(to_line(report))
    if interrupted:
        left = report.selected - len(report.results)
        hint = "" if request.results is None else "; --resume continues"
        show_progress(f"interrupted before {left} of {report.selected} rows{hint}\n")
        return 130
    return 1 if report.failed else 0


def show_progress(text: str) -> None:
    """Write what a run is doing to stderr."""
    print(text, end="", file=sys.stderr, flush=True)
