"""The file that has a run's results after each row.

A disk that refuses it stops no run: what was measured is still judged and shown, and
the end of the run says which file is not there.
"""

from pathlib import Path

from llama_perf.errors import WriteError
from llama_perf.files import write_atomically
from llama_perf.results.closeness_report import ClosenessReport
from llama_perf.results.run import Report
from llama_perf.strict_json import to_json


class ResultsFile:
    """The results of a run at `path`, or nowhere where it is None."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.problem: str | None = None
        """Why the file lacks the last results, None where it has them."""

    def write(self, report: Report | ClosenessReport) -> None:
        """Write all results so far."""
        if self.path is None:
            return
        try:
            write_atomically(self.path, to_json(report))
            self.problem = None
        except WriteError as error:
            self.problem = str(error)
