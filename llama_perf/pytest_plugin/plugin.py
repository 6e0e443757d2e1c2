"""The pytest plugin: options and pytest-benchmark's hooks -> run, compare, report.

Thin: rows are run by `llama_perf.run.session`, judged by `llama_perf.gate.verdict` and
drawn by `llama_perf.report`. The root `conftest.py` loads it, since from a deeper one
pytest-benchmark's hooks would come too late. docs/gate.md lists the traps of
pytest-benchmark that this file guards against.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from llama_perf.errors import UserError
from llama_perf.gate.confirmation import Trial
from llama_perf.pytest_plugin.benchmark_compare import CompareRequest
from llama_perf.pytest_plugin.options import PluginConfig, add_options, check_options
from llama_perf.results.run import RowResult
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import check_injections

NAME = "llama-perf"
ROW_FIXTURE = "llama_row"


class SampleClock:
    """A clock that pytest-benchmark reads and a measured sample moves on.

    The row was timed already, on the device; pytest-benchmark gets those very times
    through its public `timer` option.
    """

    def __init__(self) -> None:
        self._now_s = 0.0

    def __call__(self) -> float:
        """Seconds of all samples so far."""
        return self._now_s

    def advance(self, duration_ns: int) -> None:
        """Let `duration_ns` pass."""
        self._now_s += duration_ns / 1e9


sample_clock = SampleClock()


class LlamaPerfPlugin:
    """One per pytest run; torch is imported when the first row is asked for."""

    def __init__(self, config: pytest.Config, options: PluginConfig) -> None:
        self._config = config
        self._options = options
        self.request = CompareRequest(options, config)
        self._rows: list[RowSpec] | None = None
        self._recorder: Any = None
        self._runner: Any = None
        self._number = 0

    def rows(self) -> list[RowSpec]:
        """The selected rows; raises UserError for a wrong file, set or glob."""
        if self._rows is None:
            from llama_perf.rows import selection

            self._rows = selection.select(self._all_rows(), self._options.globs)
        return self._rows

    def _all_rows(self) -> list[RowSpec]:
        from llama_perf.rows import selection

        return selection.load(
            set_name=self._set_name(), file=self._options.rows_file, globs=()
        )

    def _set_name(self) -> str | None:
        if self._options.set_name or self._options.rows_file:
            return self._options.set_name
        from llama_perf.devices.device import unasked_device
        from llama_perf.rows import selection

        return selection.DEFAULT_SETS[unasked_device()]

    def _start(self, selected: list[RowSpec]) -> None:
        from llama_perf.run.compared_run import Recorder
        from llama_perf.run.runner import Runner

        try:
            self._runner = Runner(
                selected, options=self._options.run, progress=self._write
            )
        except UserError as error:
            # Nothing was measured, and no other row would fare better.
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
        environment = self._runner.environment
        against = self.request.against(environment, self._confirm)
        self._runner.expect(None if against is None else against.baseline)
        self._recorder = Recorder(
            started=self._runner.started,
            environment=environment,
            selected=len(selected),
            known=self._all_rows(),
            against=against,
            baselines_folder=self._options.baselines,
            path=self._options.results,
            again=self.request.chosen(self._set_name()).command("run", "--compare"),
            carried=self._runner.finished,
        )

    def _confirm(self, row: RowSpec, unquantized: RowSpec | None) -> list[Trial]:
        trials: list[Trial] = self._runner.confirm(
            row, unquantized, progress=self._write
        )
        return trials

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
        """Refuse xdist for rows: rows that run side by side slow one another."""
        if any(ROW_FIXTURE in getattr(item, "fixturenames", ()) for item in items):
            self.request.check_loaded()
            if hasattr(self._config, "workerinput"):
                raise pytest.UsageError(XDIST)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """The same, seen from the process that started the workers."""
        if any(self._is_row(node_id) for node_id in ids):
            pytest.exit(XDIST, returncode=pytest.ExitCode.USAGE_ERROR)

    def _is_row(self, node_id: str) -> bool:
        return any(node_id.endswith(f"[{row.id}]") for row in self.rows())

    # -- running ------------------------------------------------------------------

    def run(self, row_id: str, benchmark: Any, item: pytest.Item) -> None:
        """Run a row, hand its samples to pytest-benchmark, fail where it must."""
        by_id = {row.id: row for row in self.rows()}
        if self._recorder is None:
            collected = [id for each in item.session.items for id in _row_of(each)]
            self._start([by_id[id] for id in collected])
        row = by_id[row_id]
        self._number += 1
        total = len(self._runner.rows)
        self._write(f"\n[{self._number}/{total}] {row.id}: ")
        result = self._runner.run_row(
            row, progress=lambda text: self._write(f"{text}, ")
        )
        comparison = self._recorder.add(result)
        self._write(result.summary)
        if result.measurement is None:
            self._end(result, comparison.reason, failed=comparison.failed)
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

    def _end(self, result: RowResult, reason: str, *, failed: bool) -> None:
        message = f"{result.status.value} {result.id}: {reason}"
        if failed:
            pytest.fail(message, pytrace=False)
        pytest.skip(message)

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
        """No dot after a row: its line tells more."""
        if getattr(report, "when", "") == "call" and self._number:
            words = {"passed": "PASSED", "failed": "FAILED", "skipped": "SKIPPED"}
            return report.outcome, "", words[report.outcome]
        return None

    # -- pytest-benchmark ---------------------------------------------------------

    def pytest_benchmark_update_machine_info(
        self, machine_info: dict[str, Any]
    ) -> None:
        """Name the device and the libraries, which pytest-benchmark does not."""
        if self._recorder is not None:
            from dataclasses import asdict

            machine_info["llama_perf"] = asdict(self._recorder.report.environment)

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Keep the records beside pytest-benchmark's own, so a save can be compared."""
        if self._recorder is not None:
            output_json["llama_perf"] = self.request.saved(self._recorder.report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_benchmark_compare_machine_info(
        self, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
    ) -> None:
        """Take the baseline from the whole file that pytest-benchmark loaded."""
        self.request.load(compared_benchmark)
        # Environments are compared in words by the report; pytest-benchmark's own
        # warning prints both whole, and breaks where the storage lies elsewhere.
        compared_benchmark["machine_info"] = machine_info

    # -- the end ------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Let go of the device, after an interrupt too."""
        if self._runner is not None:
            self._runner.close()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> Generator[None]:
        """Print the table after everything else, and write the markdown."""
        yield
        if self._recorder is None or not self._recorder.report.results:
            return
        from llama_perf.report.markdown import as_markdown
        from llama_perf.report.text import as_text
        from llama_perf.run.compared_run import advice

        report = self._recorder.report
        terminalreporter.section("llama-perf")
        terminalreporter.write(as_text(report))
        terminalreporter.write(f"results: {self._options.results}\n")
        for line in advice(report, self.request.chosen(self._set_name())):
            terminalreporter.write(line + "\n")
        if self._options.markdown is not None:
            from llama_perf.strict_json import write_atomically

            write_atomically(self._options.markdown, as_markdown(report))


XDIST = (
    "rows cannot run under xdist: side by side they slow one another, and"
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
    """Register the options, one group of their own."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Check the options before pytest-benchmark acts on its own."""
    try:
        options = PluginConfig.read(config)
        check_options(config, options)
        plugin = LlamaPerfPlugin(config, options)
        if options.names_rows or options.run.slowdowns or options.run.damages:
            # Here a mistake is a usage error; while collecting, a traceback.
            check_injections(options.run, plugin.rows())
        plugin.request.prepare()
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    config.pluginmanager.register(plugin, NAME)


@pytest.fixture
def row_runner(request: pytest.FixtureRequest) -> LlamaPerfPlugin:
    """The plugin of this run."""
    plugin = request.config.pluginmanager.get_plugin(NAME)
    assert isinstance(plugin, LlamaPerfPlugin), "registered by pytest_configure"
    return plugin
