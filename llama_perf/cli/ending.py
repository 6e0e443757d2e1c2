"""How the commands that measure rows end."""

from collections.abc import Sequence

from llama_perf.report.text import as_text
from llama_perf.results.run import Report
from llama_perf.run.display import Display
from llama_perf.run.options import RunRequest
from llama_perf.strict_json import to_line
from llama_perf.words import counted


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
    print(as_text(report))
    for line in remarks:
        print(line)
    request.write_reports(report)
    if request.print_results:
        print(to_line(report))
    if interrupted:
        left = report.selected - len(report.results)
        rows = counted(report.selected, "row")
        display.note(f"interrupted before {left} of {rows}{advice}")
        return 130
    return 1 if report.failed else 0
