"""How the commands that measure rows end."""

import shutil
import sys
from collections.abc import Sequence

from llama_perf.report.columns import on_screen
from llama_perf.report.text import as_text
from llama_perf.results.run import Report
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
    *,
    remarks: Sequence[str] = (),
    interrupted: int | None = None,
    advice: Sequence[str] = (),
) -> int:
    """Print the report and write its files; 1 where a row failed.

    `remarks` are lines below the table. `interrupted` is the exit code after an
    interrupt; `advice` says then, at the very end, what is left undone.
    """
    print_report(report, request)
    for line in remarks:
        print(line)
    request.write_reports(report)
    if request.print_results:
        print(to_line(report))
    if interrupted is None:
        return 1 if report.failed else 0
    sys.stdout.flush()
    for line in advice:
        # As it is: a command that a terminal's width broke could not be copied.
        print(line, file=sys.stderr)
    return interrupted
