"""How the commands that measure rows end."""

import shutil
import sys
from collections.abc import Sequence

from llama_perf.report.columns import on_screen
from llama_perf.report.text import as_text
from llama_perf.results.run import Report
from llama_perf.run.display import Display
from llama_perf.run.options import RunRequest
from llama_perf.strict_json import to_line


def print_report(report: Report, request: RunRequest) -> None:
    """Print the report with the columns that the request asks for."""
    print(as_text(report, on_screen(request.columns, terminal_width())))


def terminal_width() -> int | None:
    """The characters of a line where stdout is a terminal, None where it is not."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def end(
    report: Report,
    request: RunRequest,
    display: Display,
    *,
    interrupted: bool,
    remarks: Sequence[str] = (),
    advice: str = "",
) -> int:
    """Print the report and write its files; 1 where a row failed, 130 on Ctrl-C.

    `remarks` are lines below the table; `advice` is for a run that was interrupted.
    """
    print_report(report, request)
    for line in remarks:
        print(line)
    request.write_reports(report)
    if request.print_results:
        print(to_line(report))
    if interrupted:
        left = report.selected - len(report.results)
        display.note(f"interrupted before {left} of {report.selected} rows{advice}")
        return 130
    return 1 if report.failed else 0
