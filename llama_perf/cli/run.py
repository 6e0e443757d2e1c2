"""`llama-perf run`: what the pytest plugin runs, without pytest."""

import argparse
import sys
from contextlib import closing

from llama_perf.report.text import as_text
from llama_perf.run import options
from llama_perf.run.display import Display
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
    display = Display.on(sys.stderr)
    with closing(ComparedRun(rows, request, display=display)) as run:
        try:
            for row in rows:
                run.run_row(row)
        except KeyboardInterrupt:
            interrupted = True
    report = run.report
    print(as_text(report))
    for line in run.write_report():
        print(line)
    if request.print_results:
        print(to_line(report))
    if interrupted:
        left = report.selected - len(report.results)
        hint = "" if request.results is None else "; --resume continues"
        display.note(f"interrupted before {left} of {report.selected} rows{hint}")
        return 130
    return 1 if report.failed else 0
