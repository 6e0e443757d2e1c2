"""The pytest plugin: rows become tests, and pytest-benchmark gets their times.

It holds no arithmetic: `llama_perf.run.compared_run` measures and judges, and
`llama_perf.report` draws the table. The root `conftest.py` loads it, since
pytest-benchmark's hooks would come first from a deeper one. docs/running.md lists the
traps of pytest-benchmark that this file guards against.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from llama_perf import report as reports
from llama_perf.errors import UserError
from llama_perf.pytest_plugin import closeness, options, terminal
from llama_perf.pytest_plugin.junit import junit_properties
from llama_perf.pytest_plugin.terminal import usage_errors
from llama_perf.results import baselines, recording
from llama_perf.results.disturbance import disturbance
from llama_perf.rows.spec import RowSpec
from llama_perf.run.baseline_patch import unfinished
from llama_perf.run.interrupts import exit_code, ignore_interrupts, interrupts, shielded
from llama_perf.run.options import RunRequest, program
from llama_perf.run.resume import interrupted_lines
from llama_perf.strict_json import to_json

if TYPE_CHECKING:
    from llama_perf.run.compared_run import ComparedRun

pytest_addoption = options.pytest_addoption
NAME = "llama-perf"
ROW_FIXTURE = "llama_row"
# What a save of pytest-benchmark shows of a measurement.
_FIGURES = (
    *("tok_s", "decode_tok_s", "time_to_first_token_s", "bandwidth_gb_s"),
    *("device_bandwidth_gb_s", "peak_memory_bytes", "model_size_bytes", "weights"),
)


class SampleClock:
    """A clock for pytest-benchmark that only a measured sample advances.

    The row was timed already, on the device. Through its public `timer` option,
    pytest-benchmark gets those very times.
    """

    now_s = 0.0
    """The seconds of all samples so far."""

    def __call__(self) -> float:
        """Read the clock."""
        return self.now_s


sample_clock = SampleClock()


class LlamaPerfPlugin:
    """One object per pytest run; torch is imported when the rows are about to run."""

    def __init__(self, config: pytest.Config, request: RunRequest) -> None:
        self._config = config
        self._request = request
        self._named = options.named_baseline(config)
        self._run: ComparedRun | None = None
        self._interrupt: KeyboardInterrupt | None = None
        self._properties: list[tuple[str, object]] = []
        """Those of the test that runs, which `--junitxml` writes."""
        self._mistake: UserError | None = None
        self._unwritten: list[str] = []
        self._offer = unfinished(request)

    @cached_property
    def rows(self) -> dict[str, RowSpec]:
        """The selected rows by id; raises UserError for a wrong file, set or glob."""
        return {row.id: row for row in self._request.selected()}

    # -- collection ---------------------------------------------------------------

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrize by the selected rows, under their ids."""
        if ROW_FIXTURE not in metafunc.fixturenames:
            return
        ids: list[str] = []
        try:
            # As text: pytest-benchmark cannot store a row in its JSON.
            ids = list(self.rows)
        except UserError as error:
            # Raised here it would be a traceback of the test's collection.
            self._mistake = error
        metafunc.parametrize(ROW_FIXTURE, ids, ids=ids)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self) -> None:
        """End pytest in one line where no rows can be selected."""
        if self._mistake is not None:
            raise pytest.UsageError(str(self._mistake))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Refuse rows under xdist, whose workers wait for this process before a run."""
        if any(node_id.endswith(f"[{row}]") for node_id in ids for row in self.rows):
            pytest.exit(
                "rows cannot run under xdist: rows that run at once slow one another,"
                " and pytest-benchmark then measures nothing; run them without -n",
                returncode=pytest.ExitCode.USAGE_ERROR,
            )

    # -- running ------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(
        self, session: pytest.Session
    ) -> Generator[None, object, object]:
        """Start the run of the collected rows, and end it with the baseline's patch."""
        self._start(session)
        ended = yield
        if self._run is not None:
            with terminal.written(self._config):
                self._offer = self._run.offer_patch()
        return ended

    def _start(self, session: pytest.Session) -> None:
        """Start the run of the collected rows; a mistake ends pytest in one line."""
        rows = [self.rows[row] for row in terminal.collected(session, ROW_FIXTURE)]
        if not rows:
            return
        option = session.config.option
        value = getattr(option, "benchmark_compare", None)
        if value and self._named is None:
            # pytest-benchmark only warns about it.
            raise pytest.UsageError(
                f"--benchmark-compare: {value!r} names no saved run that can be read in"
                f" {option.benchmark_storage}"
            )
        stack = ExitStack()
        stack.enter_context(interrupts())
        self._config.add_cleanup(stack.close)
        # Modules whose import is interrupted cannot be imported again.
        with shielded():
            from llama_perf.run.compared_run import ComparedRun
        with usage_errors():
            self._run = ComparedRun(
                rows,
                self._request,
                named=self._named,
                display=terminal.display(self._config),
            )

    @pytest.fixture
    def row_runner(self, request: pytest.FixtureRequest) -> LlamaPerfPlugin:
        """The plugin, for the test of a row."""
        self._properties = request.node.user_properties
        return self

    def run(self, row_id: str, benchmark: Any) -> None:
        """Run a row, hand its samples to pytest-benchmark, fail where it must."""
        assert self._run is not None, "pytest_runtestloop starts the run"
        with terminal.written(self._config):
            result, comparison = self._run.run_row(self.rows[row_id])
        self._properties += junit_properties(result, comparison)
        now = result.measurement
        if now is not None:
            samples = iter(now.sample_ns)

            def sample() -> None:
                sample_clock.now_s += next(samples) / 1e9

            known = {name: getattr(now, name) for name in _FIGURES}
            known = {name: value for name, value in known.items() if value is not None}
            info = {"row": row_id, "verdict": comparison.verdict.value, **known}
            if words := disturbance(result, comparison):
                info["disturbed"] = words
            benchmark.extra_info.update(info)
            benchmark.group = NAME
            benchmark.pedantic(sample, rounds=len(now.sample_ns))
        ended = result.status if now is None else comparison.verdict
        message = f"{ended.value} {row_id}: {comparison.reason}"
        if comparison.failed:
            pytest.fail(message, pytrace=False)
        if now is None:
            pytest.skip(message)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> tuple[str, str, str] | None:
        """Print no dot after a row, which has a line of its own."""
        if getattr(report, "when", "") == "call" and self._run is not None:
            return report.outcome, "", report.outcome.upper()
        return None

    # -- pytest-benchmark ---------------------------------------------------------

    def pytest_benchmark_update_machine_info(
        self, machine_info: dict[str, Any]
    ) -> None:
        """Name the device and the libraries, which pytest-benchmark does not."""
        if self._run is not None:
            machine_info[recording.SECTION] = asdict(self._run.report.environment)

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Add the measurements to pytest-benchmark's save, so it can be a baseline."""
        if self._run is not None:
            saved = baselines.of_report(self._run.report)
            output_json[recording.SECTION] = json.loads(to_json(saved))

    @pytest.hookimpl(tryfirst=True)
    def pytest_benchmark_compare_machine_info(
        self, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
    ) -> None:
        """Take the baseline from the file that pytest-benchmark loaded."""
        with usage_errors():
            self._named = options.loaded_baseline(self._config, compared_benchmark)
        # The report says in words how the environments differ. pytest-benchmark's own
        # warning prints both in full, and breaks where the storage lies elsewhere.
        compared_benchmark["machine_info"] = machine_info

    # -- the end ------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(
        self, excinfo: pytest.ExceptionInfo[BaseException]
    ) -> None:
        """Let nothing disturb the end: neither a second Ctrl-C nor a SIGTERM."""
        ignore_interrupts()
        if isinstance(excinfo.value, KeyboardInterrupt):
            self._interrupt = excinfo.value

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Unlock the device and write the reports, after an interrupt too.

        A run whose results or report are not where the user wants them fails.
        """
        if self._run is None:
            return
        ignore_interrupts()
        self._run.close()
        if self._run.report.results:
            self._unwritten = self._request.write_reports(self._run.report)
        if self._request.results_named and self._run.file.problem is not None:
            self._unwritten.insert(0, self._run.file.problem)
        self._unwritten += self._offer.problems
        terminal.fail_for(self._unwritten, session)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> Generator[None]:
        """Print the table after everything else, and what could not be written."""
        yield
        if self._run is None:
            return
        report, lines = self._run.report, self._run.missing_baselines()
        lines += self._offer.lines
        if self._interrupt is not None:
            words = map(str, self._config.invocation_params.args)
            code, command = exit_code(self._interrupt), [*program("pytest"), *words]
            lines += interrupted_lines(report, self._request, code, command)
        if report.results:
            from llama_perf.report.columns import on_screen

            writer = self._config.get_terminal_writer()
            width = writer.fullwidth if terminalreporter.isatty else None
            layout = on_screen(self._request.columns, width)
            terminalreporter.section("llama-perf")
            terminalreporter.write(reports.draw(report, "text", layout))
            if self._run.file.problem is None:
                terminalreporter.write(f"results: {self._run.file.path}\n")
            elif not self._request.results_named:
                problem = f"note: the results are not kept: {self._run.file.problem}\n"
                terminalreporter.write(problem)
        for line in lines:
            terminalreporter.write(line + "\n")
        for problem in self._unwritten:
            terminalreporter.write(f"ERROR: {problem}\n", red=True)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Check the options before pytest-benchmark acts on its own."""
    with usage_errors():
        request = options.read_options(config)
        plugin = LlamaPerfPlugin(config, request)
        asked = (request.set, request.rows, request.row, request.shard)
        if any((*asked, request.inject_slowdown, request.inject_damage)):
            # Here a mistake is a usage error; during collection, a traceback.
            _ = plugin.rows
        compared = closeness.ClosenessPlugin(config, request)
    config.pluginmanager.register(plugin, NAME)
    config.pluginmanager.register(compared, closeness.NAME)
