"""The pytest plugin: rows become tests, and pytest-benchmark gets their times.

It holds no arithmetic: `llama_perf.run.compared_run` measures and judges, and
`llama_perf.report` draws the table. The root `conftest.py` loads it, since
pytest-benchmark's hooks would come first from a deeper one. docs/running.md lists the
traps of pytest-benchmark that this file guards against.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from llama_perf.errors import UserError
from llama_perf.pytest_plugin.named_baseline import (
    SECTION,
    NamedBaseline,
    saved_section,
)
from llama_perf.pytest_plugin.options import add_options, read_options
from llama_perf.results.run import RowResult
from llama_perf.rows.spec import RowSpec
from llama_perf.run.request import RunRequest

if TYPE_CHECKING:
    from llama_perf.run.compared_run import ComparedRun

NAME = "llama-perf"
ROW_FIXTURE = "llama_row"


class SampleClock:
    """A clock for pytest-benchmark that only a measured sample advances.

    The row was timed already, on the device. Through its public `timer` option,
    pytest-benchmark gets those very times.
    """

    def __init__(self) -> None:
        self._now_s = 0.0

    def __call__(self) -> float:
        """The seconds of all samples so far."""
        return self._now_s

    def advance(self, duration_ns: int) -> None:
        """Let `duration_ns` pass."""
        self._now_s += duration_ns / 1e9


sample_clock = SampleClock()


class LlamaPerfPlugin:
    """One object per pytest run; torch is imported when the rows are about to run."""

    def __init__(self, config: pytest.Config, request: RunRequest) -> None:
        self._config = config
        self._request = request
        self.named_baseline = NamedBaseline(config)
        self._rows: list[RowSpec] | None = None
        self._run: ComparedRun | None = None

    def rows(self) -> list[RowSpec]:
        """The selected rows; raises UserError for a wrong file, set or glob."""
        if self._rows is None:
            self._rows = self._request.selection.rows()
        return self._rows

    # -- collection ---------------------------------------------------------------

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrize by the selected rows, under their ids."""
        if ROW_FIXTURE not in metafunc.fixturenames:
            return
        try:
            rows = self.rows()
        except UserError as error:
            raise pytest.UsageError(str(error)) from None
        # As text: pytest-benchmark cannot store a row in its JSON.
        ids = [row.id for row in rows]
        metafunc.parametrize(ROW_FIXTURE, ids, ids=ids)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Refuse rows under xdist: rows that run at once slow one another."""
        if any(ROW_FIXTURE in getattr(item, "fixturenames", ()) for item in items):
            self.named_baseline.check_loaded()
            if hasattr(self._config, "workerinput"):
                raise pytest.UsageError(XDIST)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Refuse them in the process that started xdist's workers, too."""
        if any(self._is_row(node_id) for node_id in ids):
            pytest.exit(XDIST, returncode=pytest.ExitCode.USAGE_ERROR)

    def _is_row(self, node_id: str) -> bool:
        return any(node_id.endswith(f"[{row.id}]") for row in self.rows())

    # -- running ------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Start the run of the collected rows; a mistake ends pytest in one line."""
        ids = [row_id for item in session.items for row_id in _row_of(item)]
        options = session.config.option
        broken = session.testsfailed and not options.continue_on_collection_errors
        if not ids or options.collectonly or broken:
            return
        from llama_perf.run.compared_run import start_run

        by_id = {row.id: row for row in self.rows()}
        try:
            self._run = start_run(
                [by_id[row_id] for row_id in ids],
                self._request,
                named=self.named_baseline.source_and_baseline,
                progress=self._write,
            )
        except UserError as error:
            raise pytest.UsageError(str(error)) from None

    def run(self, row_id: str, benchmark: Any) -> None:
        """Run a row, hand its samples to pytest-benchmark, fail where it must."""
        assert self._run is not None, "pytest_runtestloop starts the run"
        self._write("\n")
        row = next(row for row in self._run.rows if row.id == row_id)
        result, comparison = self._run.run_row(row)
        if result.measurement is None:
            message = f"{result.status.value} {result.id}: {comparison.reason}"
            if comparison.failed:
                pytest.fail(message, pytrace=False)
            pytest.skip(message)
        samples = iter(result.measurement.sample_ns)
        benchmark.extra_info.update(_extra_info(result, comparison.verdict.value))
        benchmark.group = NAME
        benchmark.pedantic(
            lambda: sample_clock.advance(next(samples)),
            rounds=len(result.measurement.sample_ns),
        )
        if comparison.failed:
            pytest.fail(
                f"{comparison.verdict.value} {row.id}: {comparison.reason}",
                pytrace=False,
            )

    def _write(self, text: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        if reporter is None:
            return
        if capture is None:
            reporter.write(text, flush=True)
            return
        with capture.global_and_fixture_disabled():
            reporter.write(text, flush=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> tuple[str, str, str] | None:
        """Print no dot after a row, which has a line of its own."""
        if getattr(report, "when", "") == "call" and self._run is not None:
            words = {"passed": "PASSED", "failed": "FAILED", "skipped": "SKIPPED"}
            return report.outcome, "", words[report.outcome]
        return None

    # -- pytest-benchmark ---------------------------------------------------------

    def pytest_benchmark_update_machine_info(
        self, machine_info: dict[str, Any]
    ) -> None:
        """Name the device and the libraries, which pytest-benchmark does not."""
        if self._run is not None:
            machine_info[SECTION] = asdict(self._run.report.environment)

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Add the measurements to pytest-benchmark's save, so it can be a baseline."""
        if self._run is not None:
            output_json[SECTION] = saved_section(self._run.report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_benchmark_compare_machine_info(
        self, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
    ) -> None:
        """Take the baseline from the file that pytest-benchmark loaded."""
        self.named_baseline.load(compared_benchmark)
        # The report says in words how the environments differ. pytest-benchmark's own
        # warning prints both in full, and breaks where the storage lies elsewhere.
        compared_benchmark["machine_info"] = machine_info

    # -- the end ------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Unlock the device, after an interrupt too."""
        if self._run is not None:
            self._run.close()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> Generator[None]:
        """Print the table after everything else, and write the report."""
        yield
        if self._run is None or not self._run.report.results:
            return
        from llama_perf.report.text import as_text

        terminalreporter.section("llama-perf")
        terminalreporter.write(as_text(self._run.report))
        terminalreporter.write(f"results: {self._request.results}\n")
        for line in self._run.write_report():
            terminalreporter.write(line + "\n")


XDIST = (
    "rows cannot run under xdist: rows that run at once slow one another, and"
    " pytest-benchmark then measures nothing; run tests/perf without -n"
)


def _row_of(item: pytest.Item) -> list[str]:
    params = getattr(getattr(item, "callspec", None), "params", {})
    return [params[ROW_FIXTURE]] if ROW_FIXTURE in params else []


def _extra_info(result: RowResult, verdict: str) -> dict[str, float | int | str]:
    now = result.measurement
    assert now is not None, "only a measured row has figures"
    figures: dict[str, float | int | str | None] = {
        "row": result.id,
        "verdict": verdict,
        "tok_s": now.tok_s,
        "decode_tok_s": now.decode_tok_s,
        "time_to_first_token_s": now.time_to_first_token_s,
        "bandwidth_gb_s": now.bandwidth_gb_s,
        "device_bandwidth_gb_s": now.device_bandwidth_gb_s,
        "peak_memory_bytes": now.peak_memory_bytes,
        "model_size_bytes": now.model_size_bytes,
        "weights": now.weights,
    }
    return {name: value for name, value in figures.items() if value is not None}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options in a group of their own."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Check the options before pytest-benchmark acts on its own."""
    try:
        options = read_options(config)
        plugin = LlamaPerfPlugin(config, options)
        if options.selection.named or options.run.slowdowns or options.run.damages:
            # Here a mistake is a usage error; during collection, a traceback.
            options.run.check_injections(plugin.rows())
        plugin.named_baseline.prepare()
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    config.pluginmanager.register(plugin, NAME)


@pytest.fixture
def row_runner(request: pytest.FixtureRequest) -> LlamaPerfPlugin:
    """The plugin of this run."""
    plugin = request.config.pluginmanager.get_plugin(NAME)
    assert isinstance(plugin, LlamaPerfPlugin), "registered by pytest_configure"
    return plugin
