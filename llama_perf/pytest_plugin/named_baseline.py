"""`--benchmark-compare=VALUE`: a saved run or a baseline file, named by the user.

Without a value the option means this device's baseline, as `--compare` does, which the
run itself finds. pytest-benchmark loads its own saves; a baseline file is read here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import RecordError
from llama_perf.gate import baselines
from llama_perf.results.baseline import Baseline
from llama_perf.results.run import Report
from llama_perf.strict_json import from_plain, to_json

SECTION = "llama_perf"


class NamedBaseline:
    """The baseline that `--benchmark-compare=VALUE` names in one run of pytest.

    `source_and_baseline` is None until it was read, or where none was named.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._value: str | bool | None = config.getoption("benchmark_compare", None)
        self._source: str | None = None
        self.source_and_baseline: tuple[str, Baseline] | None = None

    def prepare(self) -> None:
        """Before pytest-benchmark loads what is to be compared; raises RecordError."""
        option = self._config.option
        if self._value is True:
            # pytest-benchmark would take the last run in its own storage, whatever
            # rows that had.
            option.benchmark_compare = None
        if not isinstance(self._value, str):
            return
        path = self._config.invocation_params.dir / self._value
        if not path.is_file():
            return
        self._source = str(path)
        if _is_saved_run(path):
            option.benchmark_compare = str(path)
        else:
            option.benchmark_compare = None
            self.source_and_baseline = str(path), baselines.read(path)

    def load(self, document: dict[str, Any]) -> None:
        """Take the baseline from a file of pytest-benchmark; raises UsageError."""
        section = document.get(SECTION)
        source = self._source or f"a saved run of {document.get('datetime')}"
        if section is None:
            raise pytest.UsageError(
                f"{source}: it holds no llama-perf records; save one with"
                " pytest tests/perf --benchmark-save=NAME"
            )
        try:
            baseline = from_plain(Baseline, section, source=source)
        except RecordError as error:
            raise pytest.UsageError(str(error)) from None
        self.source_and_baseline = source, baseline

    def check_loaded(self) -> None:
        """Refuse a value that named nothing: pytest-benchmark only warns about it."""
        if isinstance(self._value, str) and self.source_and_baseline is None:
            raise pytest.UsageError(
                f"--benchmark-compare: {self._value!r} names no saved run that can be"
                f" read in {self._config.option.benchmark_storage}"
            )


def _is_saved_run(path: Path) -> bool:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(document, dict) and "benchmarks" in document


def saved_section(report: Report) -> dict[str, Any]:
    """What a save of pytest-benchmark gets, so that it can be a baseline later."""
    baseline = Baseline(
        recorded=report.started,
        environment=report.environment,
        rows=tuple(
            baselines.baseline_row(result.row, result.measurement)
            for result in report.results
            if result.measurement is not None
        ),
    )
    section: dict[str, Any] = json.loads(to_json(baseline))
    return section
