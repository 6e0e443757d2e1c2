"""How the commands that measure rows end."""

import sys
from collections.abc import Sequence

from llama_perf.report.text import as_text
from llama_perf.results.run import Report
from llama_perf.run.display import Display
from llama_perf.run.options import RunRequest
from llama_perf.run.results_file import ResultsFile
from llama_perf.strict_json import to_line


def end(
    report: Report,
    request: RunRequest,
    display: Display,
    *,
    file: ResultsFile,
    interrupted: bool,
    remarks: Sequence[str] = (),
    advice: str = "",
) -> int:
    """Print the report and write its files; 1 where a row failed, 130 on Ctrl-C.

    Where the results `file` or a report could not be written it is 2. `remarks` are
    lines below the table; `advice` is for a run that was interrupted.
    """
    # What is printed may meet a full disk or a closed pipe: the files come first.
    problems = [*filter(None, [file.problem]), *request.write_reports(report)]
    print(as_text(report))
    for line in remarks:
        print(line)
    if request.print_results:
        print(to_line(report))
    for problem in problems:
        print(f"llama-perf: error: {problem}", file=sys.stderr)
    if interrupted:
        left = report.selected - len(report.results)
        display.note(f"interrupted before {left} of {report.selected} rows{advice}")
        return 130
    if problems and not report.failed:
        return 2
    return 1 if report.failed else 0
