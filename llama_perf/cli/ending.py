"""How the commands that measure rows end."""

import shutil
import sys
from collections.abc import Sequence

from llama_perf import report as reports
from llama_perf.report.columns import on_screen
from llama_perf.results.run import Report
from llama_perf.run.options import RunRequest
from llama_perf.run.results_file import ResultsFile
from llama_perf.strict_json import to_line


def print_report(report: Report, request: RunRequest) -> None:
    """Print the report with the columns that the request asks for."""
    layout = on_screen(request.columns, terminal_width())
    print(reports.draw(report, "text", layout))


def terminal_width() -> int | None:
    """The characters of a line where stdout is a terminal, None where it is not."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def end(
    report: Report,
    request: RunRequest,
    *,
    file: ResultsFile,
    remarks: Sequence[str] = (),
    problems: Sequence[str] = (),
    interrupted: int | None = None,
    advice: Sequence[str] = (),
) -> int:
    """Print the report and write its files; 1 where a row failed.

    Where the results `file` or a report could not be written it is 2. `remarks` are
    lines below the table, and `problems` are files that could not be written either.
    `interrupted` is the exit code after an interrupt; `advice` says then, at the very
    end, what is left undone.
    """
    # What is printed may meet a full disk or a closed pipe: the files come first.
    unwritten = [*filter(None, [file.problem]), *request.write_reports(report)]
    unwritten += problems
    print_report(report, request)
    for line in remarks:
        print(line)
    if request.print_results:
        print(to_line(report))
    code = code_of(unwritten)
    if interrupted is not None:
        for line in advice:
            # As it is: a command that a terminal's width broke could not be copied.
            print(line, file=sys.stderr)
        return interrupted
    return 1 if report.failed else code


def code_of(problems: Sequence[str]) -> int:
    """Say which files could not be written, a line each; 2 where there is any, or 0."""
    sys.stdout.flush()
    for problem in problems:
        print(f"llama-perf: error: {problem}", file=sys.stderr)
    return 2 if problems else 0
