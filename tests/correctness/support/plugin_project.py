"""A project of its own for the plugin's tests: tiny rows that take milliseconds."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf.files import write_atomically
from llama_perf.results import baselines
from llama_perf.results.baselines import Baseline
from llama_perf.results.measurement import Ceiling
from llama_perf.results.run import Report
from llama_perf.results.verdict import Verdict
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from llama_perf.run import compared_run, session, worker
from llama_perf.run.options import RunRequest
from llama_perf.strict_json import read_json, to_json
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.record_samples import MEASUREMENT
from tests.correctness.support.weights_samples import (
    CONFIG_JSON,
    TINY,
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


def write_tiny(folder: Path, *, vocab_size: int = TINY.vocab_size) -> Path:
    """A checkpoint of random weights, made with its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG_JSON | {"vocab_size": vocab_size})
    weights = all_weights(tiny_weights(replace(TINY, vocab_size=vocab_size)))
    torch.save(weights, folder / "model.pth")
    return folder


class InProcessWorker:
    """A worker without a process, so that a test can replace what a row calls."""

    def __init__(self, *, options: RunRequest, devices: Iterable[str]) -> None:
        self._session = session.Session(devices, options=options)

    def run(
        self, row: RowSpec, *, progress: Callable[[str], None] = lambda _text: None
    ) -> worker.WorkerResult:
        result = self._session.run_row(row, progress=progress)
        return worker.WorkerResult(result=result, environment=self._session.environment)

    def close(self) -> None:
        pass


class Project:
    """A rootdir with the suite's own test, settings and conftest, and tiny rows.

    The bandwidth is made up, and a row's process is this one: measuring the one and
    starting the other would take most of a run's time.
    """

    def __init__(
        self, pytester: pytest.Pytester, patch: pytest.MonkeyPatch, cli: CommandLine
    ) -> None:
        self.pytester, self.patch, self.cli = pytester, patch, cli
        patch.setattr(session, "measure_ceiling", lambda _: Ceiling(read_gb_s=20.0))
        self.real_process = worker.run_in_process
        patch.setattr(
            worker,
            "run_in_process",
            lambda row, *, options, devices: InProcessWorker(
                options=options, devices=devices
            ).run(row),
        )
        patch.setattr(compared_run, "Worker", InProcessWorker)
        # For the processes that a test starts.
        patch.setenv("PYTHONPATH", str(ROOT))
        # pytest-benchmark would take a run inside a test for one under xdist.
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)
        self.path = pytester.path
        self.results = self.path / ".llama-perf" / "last.json"
        self.rows = self.path / "rows.toml"
        for tests in ("perf", "correctness"):
            (self.path / "tests" / tests).mkdir(parents=True)
        (self.path / "tests" / "correctness" / "test_nothing.py").touch()
        for name in ("conftest.py", "pyproject.toml", "tests/perf/test_rows.py"):
            shutil.copy(ROOT / name, self.path / name)
        self.rows.write_text(ROWS, encoding="utf-8")
        write_tiny(self.path / "checkpoints" / "tiny")

    def run(self, *options: str, **outcomes: int) -> pytest.RunResult:
        """`pytest tests/perf` over the tiny rows, in this process and no other.

        Where `outcomes` are given, the tests must end so, and pytest with their code.
        """
        rows = ["--rows", str(self.rows)]
        checkpoints = ["--checkpoints", str(self.path / "checkpoints")]
        # hypothesis would be imported anew each time, which takes longer than the run.
        without = ["-p", "no:hypothesispytest"]
        result = self.pytester.runpytest_inprocess(
            self.path / "tests" / "perf", *without, *rows, *checkpoints, *options
        )
        if outcomes:
            result.assert_outcomes(**outcomes)
            assert int(result.ret) == bool(outcomes.get("failed"))
        return result

    def words(self, *words: str) -> list[str]:
        """`llama-perf WORDS` over the tiny rows, with this project's baselines."""
        names = ("checkpoints", "baselines")
        rest = [word for name in names for word in (f"--{name}", str(self.path / name))]
        return [*words, "--rows", str(self.rows), *rest]

    def run_words(self, *options: str) -> list[str]:
        """`llama-perf run`, with its results where pytest keeps them."""
        self.results.parent.mkdir(exist_ok=True)
        return [*self.words("run"), "--results", str(self.results), *options]

    def start(self, *options: str) -> subprocess.Popen[str]:
        """`llama-perf run` in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "llama_perf", *self.run_words(*options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def edit(self, before: str, after: str, path: Path | None = None) -> None:
        """Replace the first `before` in a file, by default that of the rows."""
        path = path or self.rows
        text = path.read_text(encoding="utf-8")
        assert before in text
        path.write_text(text.replace(before, after, 1), encoding="utf-8")

    def report(self) -> Report:
        """The results that the last run saved."""
        return read_json(Report, self.results)

    def verdicts(self) -> dict[str, Verdict]:
        """The last run's verdicts by row id."""
        comparisons = self.report().comparisons
        return {comparison.id: comparison.verdict for comparison in comparisons}

    def record(self, **changes: Any) -> Path:
        """Make the last run this device's baseline, with changes to every row.

        Before the first run its measurements are made up. A `tok_s` is squared for a
        quantized row, so that its ratio to the unquantized row is changed as much.
        """
        if self.results.exists():
            report = self.report()
            environment = report.environment
            measurements = {
                result.row: result.measurement
                for result in report.results
                if result.measurement is not None
            }
        else:
            environment = session.Session(["cpu"], options=RunRequest()).environment
            made_up = replace(MEASUREMENT, weights="pth:tiny", peak_memory_bytes=10**12)
            measurements = dict.fromkeys(selection.load_file(self.rows)[:2], made_up)
        rows = []
        for row, measurement in measurements.items():
            of_row = dict(changes)
            if "tok_s" in changes and row.quantization is not None:
                of_row["tok_s"] = changes["tok_s"] ** 2
            rows.append(baselines.baseline_row(row, replace(measurement, **of_row)))
        baseline = Baseline(recorded="then", environment=environment, rows=tuple(rows))
        path = baselines.path_of(self.path / "baselines", environment.device_key)
        write_atomically(path, to_json(baseline))
        return path
