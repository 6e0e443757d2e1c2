"""`pytest tests/correctness --set NAME`: the closeness of rows as tests.

It holds no arithmetic: `llama_perf.run.closeness_run` compares and judges.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import pytest

from llama_perf import report as reports
from llama_perf.errors import UserError
from llama_perf.pytest_plugin import terminal
from llama_perf.pytest_plugin.terminal import usage_errors
from llama_perf.results.closeness_report import ClosenessReport
from llama_perf.rows.selection import quantized
from llama_perf.rows.spec import RowSpec
from llama_perf.run.interrupts import ignore_interrupts, interrupts, shielded
from llama_perf.run.options import RunRequest

if TYPE_CHECKING:
    from llama_perf.run.closeness_run import ClosenessRun

NAME = "llama-perf-closeness"
ROW_FIXTURE = "closeness_row"


def is_asked(config: pytest.Config) -> bool:
    """Whether the options select rows."""
    return any(config.getoption(f"llama_perf_{name}") for name in ("set", "rows"))


class ClosenessPlugin:
    """One object per pytest run; without a test of a row it does nothing."""

    def __init__(self, config: pytest.Config, request: RunRequest) -> None:
        results = request.results
        if not request.results_named:
            # That of rows' speed has a file of its own.
            results = config.rootpath / ".llama-perf" / "closeness.json"
        self._config, self._request = config, replace(request, results=results)
        self._run: ClosenessRun | None = None
        self._mistake: UserError | None = None
        self._properties: list[tuple[str, object]] = []
        self._unwritten: list[str] = []

    @cached_property
    def _rows(self) -> dict[str, RowSpec]:
        return {row.id: row for row in self._request.selected()}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrize by the selected rows that are quantized, under their ids."""
        if ROW_FIXTURE not in metafunc.fixturenames:
            return
        ids: list[str] = []
        try:
            reports.check_paths(self._request.report, ClosenessReport)
            ids = [row.id for row in quantized(list(self._rows.values()))]
        except UserError as error:
            # Raised here it would be a traceback of the test's collection.
            self._mistake = error
        metafunc.parametrize(ROW_FIXTURE, ids, ids=ids)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self) -> None:
        """End pytest in one line where no rows can be compared."""
        if self._mistake is not None:
            raise pytest.UsageError(str(self._mistake))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Start the run of the collected rows."""
        ids = terminal.collected(session, ROW_FIXTURE)
        if not ids:
            return
        stack = ExitStack()
        stack.enter_context(interrupts())
        self._config.add_cleanup(stack.close)
        rows = self._rows.values()
        chosen = [row for row in rows if row.id in ids or not row.is_quantized]
        # Modules whose import is interrupted cannot be imported again.
        with shielded():
            from llama_perf.run.closeness_run import ClosenessRun
        with usage_errors(), terminal.written(self._config):
            display = terminal.display(self._config)
            self._run = ClosenessRun(chosen, self._request, display=display)

    @pytest.fixture
    def closeness_runner(self, request: pytest.FixtureRequest) -> ClosenessPlugin:
        """The plugin, for the test of a row."""
        self._properties = request.node.user_properties
        return self

    def run(self, row_id: str) -> None:
        """Compare a row with its twin; fail where it must."""
        assert self._run is not None, "pytest_runtestloop starts the run"
        with terminal.written(self._config):
            result, comparison = self._run.run_row(self._rows[row_id])
        self._properties += [("row", row_id), ("verdict", comparison.verdict.value)]
        figures = result.closeness
        for name in () if figures is None else figures.__dataclass_fields__:
            self._properties.append((name, getattr(figures, name)))
        message = f"{comparison.verdict.value} {row_id}: {comparison.reason}"
        if comparison.failed:
            pytest.fail(message, pytrace=False)
        if figures is None:
            pytest.skip(message)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Unlock the device and write the reports, after an interrupt too."""
        if self._run is None:
            return
        ignore_interrupts()
        self._run.close()
        report = self._run.report
        if report.results:
            self._unwritten += reports.write_all(report, self._request.report)
        self._unwritten += filter(None, [self._run.file.problem])
        terminal.fail_for(self._unwritten, session)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> Generator[None]:
        """Print the table after everything else, and what could not be written."""
        yield
        if self._run is None:
            return
        if self._run.report.results:
            terminalreporter.section("llama-perf closeness")
            terminalreporter.write(reports.draw(self._run.report, "text"))
            if self._run.file.problem is None:
                terminalreporter.write(f"results: {self._run.file.path}\n")
        for problem in self._unwritten:
            terminalreporter.write(f"ERROR: {problem}\n", red=True)
