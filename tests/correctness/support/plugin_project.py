"""A project of its own for the plugin's tests: tiny rows that take milliseconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf.gate import baselines
from llama_perf.results.baseline import Baseline
from llama_perf.results.measurement import Ceiling
from llama_perf.results.run import Report
from llama_perf.results.verdict import Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run import runner, session, worker
from llama_perf.run.request import RunOptions
from llama_perf.strict_json import from_json, to_json
from tests.correctness.support.weights_samples import (
    CONFIG_JSON,
    all_weights,
    tiny_weights,
    write_json,
)

ROOT = Path(__file__).resolve().parents[3]
ROWS = """
[defaults]
model = "tiny"
device = "cpu"
dtype = "float32"
max_new_tokens = 4
num_samples = 2

[[row]]

[[row]]
quantization = "int8wo"
kernels = "torchao"

[[row]]
quantization = "fp6"
kernels = "torchao"
"""
PLAIN = "tiny.none.fp32.cpu.eager.new-4.samples-2"
INT8 = "tiny.int8wo.torchao.fp32.cpu.eager.new-4.samples-2"
# torchao dropped it: no machine runs this row.
FP6 = "tiny.fp6.torchao.fp32.cpu.eager.new-4.samples-2"


def import_all() -> None:
    """Have a row import all that it imports on its way.

    pytester forgets the modules that a run in this process imported, and torch's
    cannot be imported twice.
    """
    row = RowSpec(model="stories15M", dtype="float32", device="cpu", max_new_tokens=1)
    for variant in (row, replace(row, quantization="int8wo", kernels="torchao")):
        result = session.Session(["cpu"], options=RunOptions()).run_row(variant)
        assert result.measurement is not None, result.reason
    # The compiler's modules too: they register themselves once in a process.
    torch.compile(torch.sin)(torch.ones(4))


def in_this_process(
    row: RowSpec, *, options: RunOptions, devices: Iterable[str], **_rest: object
) -> worker.WorkerResult:
    """Stands for `worker.run_in_process`."""
    return InProcessWorker(options=options, devices=devices).run(row)


class InProcessWorker:
    """A worker without a process, so that a test can replace what a row calls."""

    def __init__(self, *, options: RunOptions, devices: Iterable[str]) -> None:
        self._session = session.Session(devices, options=options)

    def run(
        self, row: RowSpec, *, progress: Callable[[str], None] = lambda _text: None
    ) -> worker.WorkerResult:
        return worker.WorkerResult(
            result=self._session.run_row(row, progress=progress),
            environment=self._session.environment,
        )

    def close(self) -> None:
        pass


class Project:
    """A rootdir with the suite's own test, settings and conftest, and tiny rows.

    The bandwidth is made up, and a row's process is this one: measuring the one and
    starting the other would take most of a run's time.
    """

    def __init__(
        self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            session, "measure_ceiling", lambda _device: Ceiling(read_gb_s=20.0)
        )
        monkeypatch.setattr(worker, "run_in_process", in_this_process)
        self._worker = worker.Worker
        self._monkeypatch = monkeypatch
        self.isolated(False)
        # pytest-benchmark would take a run inside a test for one under xdist.
        monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
        self.pytester = pytester
        self.path = pytester.path
        for tests in ("perf", "correctness"):
            (self.path / "tests" / tests).mkdir(parents=True)
        (self.path / "tests" / "correctness" / "test_nothing.py").touch()
        for name in ("conftest.py", "pyproject.toml", "tests/perf/test_rows.py"):
            shutil.copy(ROOT / name, self.path / name)
        (self.path / "rows.toml").write_text(ROWS, encoding="utf-8")
        folder = self.path / "checkpoints" / "tiny"
        folder.mkdir(parents=True)
        write_json(folder / "config.json", CONFIG_JSON)
        torch.save(all_weights(tiny_weights()), folder / "model.pth")

    def isolated(self, isolated: bool) -> None:
        """Have rows run in a worker process, as users have it, or in this one."""
        kind = self._worker if isolated else InProcessWorker
        self._monkeypatch.setattr(runner, "Worker", kind)

    def run_isolated(self, *options: str) -> pytest.RunResult:
        """The same as `run` with rows in a worker process."""
        self.isolated(True)
        try:
            return self.run(*options)
        finally:
            self.isolated(False)

    def run(self, *options: str) -> pytest.RunResult:
        """`pytest tests/perf` over the tiny rows, in this process and no other."""
        rows = ["--rows", str(self.path / "rows.toml")]
        checkpoints = ["--checkpoints", str(self.path / "checkpoints")]
        # hypothesis would be imported anew each time, which takes longer than the run.
        without = ["-p", "no:hypothesispytest"]
        return self.pytester.runpytest_inprocess(
            self.path / "tests" / "perf", *without, *rows, *checkpoints, *options
        )

    def words(self, *words: str) -> list[str]:
        """`llama-perf WORDS` over the tiny rows, with this project's baselines."""
        folders = {
            "--rows": self.path / "rows.toml",
            "--checkpoints": self.path / "checkpoints",
            "--baselines": self.path / "baselines",
        }
        return [*words, *(str(word) for pair in folders.items() for word in pair)]

    def run_words(self, *options: str) -> list[str]:
        """`llama-perf run`, with its results where pytest keeps them."""
        results = self.path / ".llama-perf" / "last.json"
        results.parent.mkdir(exist_ok=True)
        return [*self.words("run"), "--results", str(results), *options]

    def edit_rows(self, before: str, after: str) -> None:
        """Replace the first `before` in the file of rows."""
        path = self.path / "rows.toml"
        text = path.read_text(encoding="utf-8")
        assert before in text
        path.write_text(text.replace(before, after, 1), encoding="utf-8")

    def report(self) -> Report:
        """The results that the last run saved."""
        path = self.path / ".llama-perf" / "last.json"
        return from_json(Report, path.read_bytes(), source=str(path))

    def verdicts(self) -> dict[str, Verdict]:
        """The last run's verdicts by row id."""
        comparisons = self.report().comparisons
        return {comparison.id: comparison.verdict for comparison in comparisons}

    def record(self, **changes: Any) -> Path:
        """Make the last run this device's baseline, with changes to every row.

        A `tok_s` squared for a quantized one, so that its ratio to the unquantized row
        is changed as much.
        """
        report = self.report()
        path, baseline = baselines.record(
            self.path / "baselines",
            environment=report.environment,
            results=report.results,
        )
        rows = []
        for row in baseline.rows:
            of_row = dict(changes)
            if "tok_s" in changes and row.row.quantization is not None:
                of_row["tok_s"] = changes["tok_s"] ** 2
            measurement = replace(row.measurement, **of_row)
            rows.append(replace(row, measurement=measurement))
        self.write(path, replace(baseline, rows=tuple(rows)))
        return path

    @staticmethod
    def write(path: Path, baseline: Baseline) -> None:
        path.write_text(to_json(baseline), encoding="utf-8")
