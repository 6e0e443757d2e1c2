"""`llama-perf run`: what the pytest plugin runs, without pytest."""

import argparse
import sys
from contextlib import closing

from llama_perf.cli.ending import end
from llama_perf.run import options
from llama_perf.run.display import Display

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
    return end(
        run.report,
        request,
        display,
        file=run.file,
        interrupted=interrupted,
        remarks=run.missing_baselines(),
        advice="" if request.results is None else "; --resume continues",
    )
