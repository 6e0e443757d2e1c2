"""The worker that a run's rows share, which is replaced after a row breaks."""

from collections.abc import Callable, Collection

from llama_perf.results.closeness_report import ClosenessResult
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run import worker
from llama_perf.run.options import RunRequest

Progress = Callable[[str], None]


class RowWorker:
    """Starts a worker for the first row, and another where the options want one."""

    def __init__(self, options: RunRequest, devices: Collection[str]) -> None:
        self._options, self._devices = options, devices
        self._worker: worker.Worker | None = None
        self._ranks = 1

    def run(self, row: RowSpec, progress: Progress) -> RowResult:
        """Measure a row, and its closeness where the options ask for it."""
        result = self._started(row).run(row, progress).result
        self._ended(row, result.status)
        return result

    def closeness(self, row: RowSpec, progress: Progress) -> ClosenessResult:
        """Compare a row with its unquantized twin."""
        compared = self._started(row).closeness(row, progress)
        self._ended(row, compared.status)
        return compared

    def end(self) -> None:
        """End the process, if there is one."""
        # An interrupt may come meanwhile, and it is closed once all the same.
        ending, self._worker = self._worker, None
        if ending is not None:
            ending.close()

    def _started(self, row: RowSpec) -> worker.Worker:
        if self._ranks != row.ranks:
            self.end()
        if self._worker is None:
            self._ranks = row.ranks
            self._worker = worker.Worker(
                options=self._options, devices=self._devices, ranks=row.ranks
            )
        return self._worker

    def _ended(self, row: RowSpec, status: Status) -> None:
        # A row that raised may have broken CUDA for the next one. An error that a
        # library is known to raise ends as NOT_RUN.
        known = status is Status.NOT_RUN and row.upstream_issue is not None
        if self._options.isolate == "row" or known or status is Status.INVALID:
            self.end()
