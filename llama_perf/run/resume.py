"""How a run that was interrupted goes on, in words. Imports no torch."""

import shlex
from collections.abc import Sequence

from llama_perf.results.closeness_report import ClosenessReport
from llama_perf.results.run import Report
from llama_perf.run.interrupts import described
from llama_perf.run.options import RunRequest
from llama_perf.words import counted


def left_undone(report: Report | ClosenessReport, code: int) -> str:
    """How many rows an interrupt, by the exit code that it gives, left undone."""
    left = report.selected - len(report.results)
    return f"{described(code)}: {left} of {counted(report.selected, 'row')} did not end"


def interrupted_lines(
    report: Report | ClosenessReport,
    request: RunRequest,
    code: int,
    command: Sequence[str],
) -> list[str]:
    """What an interrupt left undone, and how `command`, the run's own, continues."""
    head = left_undone(report, code)
    if request.results is None:
        return [f"{head}; only with --results FILE can a run be continued"]
    if not (report.results or request.resume):
        # The file may be of an earlier run.
        return [f"{head}; nothing was saved, since no row had ended"]
    resume = [] if request.resume else ["--resume"]
    return [f"{head}; to continue:", f"  {shlex.join([*command, *resume])}"]
