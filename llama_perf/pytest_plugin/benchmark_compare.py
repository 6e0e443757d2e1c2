"""What `--benchmark-compare` asks for, and the baseline it leads to.

Bare, it means this device's file in `baselines/`: that baseline is written out in
pytest-benchmark's own format and handed to it, so that its table shows it too, and
comes back whole through `pytest_benchmark_compare_machine_info`. With a value it
means a run that `--benchmark-save` or `--benchmark-json` kept, or a baseline file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import RecordError
from llama_perf.gate import baselines
from llama_perf.gate.confirmation import Trial
from llama_perf.pytest_plugin.options import PluginConfig
from llama_perf.results.baseline import Baseline
from llama_perf.results.environment import Environment
from llama_perf.results.run import Report
from llama_perf.rows.limit_overrides import project_limits
from llama_perf.rows.spec import RowSpec
from llama_perf.run.compared_run import Against, Chosen
from llama_perf.strict_json import from_plain, to_json, write_atomically

SECTION = "llama_perf"
_NODE = "tests/perf/test_rows.py::test_row"


class CompareRequest:
    """One run's `--benchmark-compare`."""

    def __init__(self, options: PluginConfig, config: pytest.Config) -> None:
        self._options = options
        self._config = config
        self._value: str | bool | None = config.getoption("benchmark_compare", None)
        self._loaded: Baseline | None = None
        self._source: str | None = None
        self._limits = project_limits(config.rootpath / "pyproject.toml")

    @property
    def asked(self) -> bool:
        """Whether a comparison was asked for."""
        return bool(self._value)

    def prepare(self) -> None:
        """Point pytest-benchmark at what is to be compared; raises RecordError."""
        if not self.asked:
            return
        if self._value is True:
            path = self._device_baseline()
        else:
            path = self._config.invocation_params.dir / str(self._value)
        if path is None:
            # Else pytest-benchmark would take the last run in its own storage,
            # whatever rows that held.
            self._config.option.benchmark_compare = None
            return
        if path.is_file():
            self._source = str(path)
            self._config.option.benchmark_compare = str(self._exported(path))

    def _device_baseline(self) -> Path | None:
        import torch

        from llama_perf.devices.device import default_device
        from llama_perf.measure.environment import collect

        key = collect(torch.device(default_device())).device_key
        path = baselines.path_of(self._options.baselines, key)
        return path if path.exists() else None

    def _exported(self, path: Path) -> Path:
        """A baseline in pytest-benchmark's format; its own saves as they are."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            document = None
        if isinstance(document, dict) and "benchmarks" in document:
            return path
        baseline = baselines.read(path)
        folder = self._config.rootpath / ".llama-perf" / "compare"
        target = folder / "0001_baseline.json"
        write_atomically(target, json.dumps(_as_saved_run(baseline), allow_nan=False))
        return target

    def load(self, document: dict[str, Any]) -> None:
        """Take the baseline out of a loaded file; raises UsageError."""
        section = document.get(SECTION)
        source = self._source or f"a saved run of {document.get('datetime')}"
        if section is None:
            raise pytest.UsageError(
                f"{source}: it holds no llama-perf records; save one with"
                " pytest tests/perf --benchmark-save=NAME"
            )
        try:
            self._loaded = from_plain(Baseline, section, source=source)
        except RecordError as error:
            raise pytest.UsageError(str(error)) from None
        self._source = source

    def check_loaded(self) -> None:
        """Refuse a value that named nothing: pytest-benchmark only warns of it."""
        if isinstance(self._value, str) and self._loaded is None:
            raise pytest.UsageError(
                f"--benchmark-compare: {self._value!r} names no saved run that can be"
                f" read in {self._config.option.benchmark_storage}"
            )

    def against(
        self,
        environment: Environment,
        confirm: Callable[[RowSpec, RowSpec | None], list[Trial]],
    ) -> Against | None:
        """What the rows are compared with, None where nothing was asked for."""
        if not self.asked:
            return None
        if self._loaded is None and self._value is True:
            # A CPU row set on a machine with a card: that device's baseline.
            found = baselines.find(self._options.baselines, environment.device_key)
            if found is not None:
                self._source, self._loaded = str(found[0]), found[1]
        return Against(
            baseline=self._loaded,
            source=self._source,
            missing_fails=self._options.on_missing_baseline == "fail",
            undecided_fails=self._options.on_undecided == "fail",
            confirm=confirm if self._options.confirm else None,
            limits=self._limits,
        )

    def saved(self, report: Report) -> dict[str, Any]:
        """The section that lets a saved run serve as a baseline later."""
        baseline = Baseline(
            recorded=report.started,
            environment=report.environment,
            rows=tuple(
                baselines.baseline_row(result.row, result.measurement)
                for result in report.results
                if result.measurement is not None
            ),
        )
        plain: dict[str, Any] = json.loads(to_json(baseline))
        return plain

    def chosen(self, set_name: str | None) -> Chosen:
        """The rows of the run and its folders."""
        options = self._options
        return Chosen(
            set_name=set_name,
            rows_file=options.rows_file,
            checkpoints=options.run.checkpoints,
            baselines_folder=options.baselines,
            default_folder=self._config.rootpath / "baselines",
        )


def _as_saved_run(baseline: Baseline) -> dict[str, Any]:
    from pytest_benchmark.stats import Stats

    benchmarks = []
    for row in baseline.rows:
        if not row.measurement.sample_ns:
            continue
        stats = Stats()
        for duration in row.measurement.sample_ns:
            stats.update(duration / 1e9)
        benchmarks.append(
            {
                "group": "llama-perf",
                "name": f"test_row[{row.id}]",
                "fullname": f"{_NODE}[{row.id}]",
                "params": {"llama_row": row.id},
                "param": row.id,
                "extra_info": {},
                "options": {},
                "stats": {**stats.as_dict(), "iterations": 1},
            }
        )
    return {
        "machine_info": {},
        "commit_info": {},
        "benchmarks": benchmarks,
        "datetime": baseline.recorded,
        "version": "llama-perf",
        SECTION: json.loads(json.dumps(asdict(baseline))),
    }
