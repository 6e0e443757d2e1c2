"""`llama-perf run`: what the pytest plugin runs, without pytest."""

import argparse
import sys
from contextlib import closing

from llama_perf.cli.ending import end
from llama_perf.run import options, read_options
from llama_perf.run.baseline_patch import unfinished
from llama_perf.run.display import Display
from llama_perf.run.interrupts import Interruptible
from llama_perf.run.resume import interrupted_lines

HELP = "run rows and print the table"
add_arguments = read_options.add_shared


def main(arguments: argparse.Namespace) -> int:
    """Run the selected rows; 1 where one failed, or the code of an interrupt."""
    request = read_options.request_of(arguments)
    rows = request.selected()
    # It imports torch, and a mistake in the options is reported sooner without.
    from llama_perf.run.compared_run import ComparedRun

    display, offer = Display.on(sys.stderr), unfinished(request)
    with (
        closing(ComparedRun(rows, request, display=display)) as run,
        Interruptible() as block,
    ):
        for row in rows:
            run.run_row(row)
        offer = run.offer_patch()
    lines: list[str] = []
    if block.code is not None:
        command = [*options.program("llama-perf"), *arguments.words]
        lines = interrupted_lines(run.report, request, block.code, command)
    return end(
        run.report,
        request,
        file=run.file,
        remarks=[*run.missing_baselines(), *offer.lines],
        problems=offer.problems,
        interrupted=block.code,
        advice=lines,
    )
