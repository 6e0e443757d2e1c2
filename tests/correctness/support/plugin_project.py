"""A project of its own for the plugin's tests: tiny rows that take milliseconds."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from llama_perf.measure import timing
from llama_perf.results.measurement import Ceiling
from llama_perf.results.run import Report, Verdict
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from llama_perf.run import session, worker
from llama_perf.run.options import RunRequest
from llama_perf.run.worker import Ended, Worker
from llama_perf.run.worker_protocol import WorkerResult, WorkerTask
from llama_perf.strict_json import read_json
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.record_samples import baseline_of_processes, stored_in
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
TESTS = ("tests/perf/test_rows.py", "tests/correctness/closeness/test_rows.py")
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


class InProcessWorker(Worker):
    """A worker without a process, so that a test can replace what a row calls."""

    def __init__(
        self, *, options: RunRequest, devices: Iterable[str], **_python: object
    ) -> None:
        self._session = session.Session(devices, options=options)
        self._options, self._devices = options, tuple(devices)

    def _ask(self, task: WorkerTask, progress: Callable[[str], None]) -> Ended:
        if task.action == "closeness":
            text = None if task.text is None else Path(task.text)
            return self._session.closeness(
                task.row, text=text, tokens=task.tokens, progress=progress
            )
        assert task.action is None, "a row that is kept needs a process"
        result = self._session.run_row(task.row, progress=progress)
        return WorkerResult(result=result, environment=self._session.environment)

    def close(self) -> None:
        pass


class Project:
    """A rootdir with the suite's own test, settings and conftest, and tiny rows.

    The bandwidth is made up, and a row's process is this one: measuring the one and
    starting the other would take most of a run's time. No verdict hangs on what else
    this machine does.
    """

    def __init__(
        self, pytester: pytest.Pytester, patch: pytest.MonkeyPatch, cli: CommandLine
    ) -> None:
        self.pytester, self.patch, self.cli = pytester, patch, cli
        patch.setattr(session, "measure_ceiling", lambda _: Ceiling(read_gb_s=20.0))
        patch.setattr(timing, "LoadWatch", lambda _: Mock(load=lambda: None))
        patch.setattr(worker, "Worker", InProcessWorker)
        # For the processes that a test starts.
        patch.setenv("PYTHONPATH", str(ROOT))
        # pytest-benchmark would take a run inside a test for one under xdist.
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)
        self.path = pytester.path
        self.results = self.path / ".llama-perf" / "last.json"
        self.compiled_anew: list[bool] = []
        self.rows = self.path / "rows.toml"
        checkpoints = self.path / "checkpoints"
        self.tiny_rows = ("--rows", str(self.rows), "--checkpoints", str(checkpoints))
        self.baselines = ("--baselines", str(self.path / "baselines"))
        (self.path / "baselines").mkdir()
        for name in ("conftest.py", "pyproject.toml", *TESTS):
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.path / name)
        self.rows.write_text(ROWS, encoding="utf-8")
        write_tiny(checkpoints / "tiny")

    def run(
        self, *options: str, tests: Any = "tests/perf", **outcomes: int
    ) -> pytest.RunResult:
        """`pytest tests/perf` over the tiny rows, in this process and no other.

        Where `outcomes` are given, the tests must end so, and pytest with their code.
        """
        # hypothesis would be imported anew each time, which takes longer than the run.
        without = ["-p", "no:hypothesispytest"]
        result = self.pytester.runpytest_inprocess(
            self.path / tests, *without, *self.tiny_rows, *options
        )
        if outcomes:
            result.assert_outcomes(**outcomes)
            assert int(result.ret) == bool(outcomes.get("failed"))
        return result

    def refusal(self, *options: str) -> str:
        """The text of a usage error of `run`, which is one without a traceback."""
        result = self.run(*options)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        text = result.stderr.str()
        assert sum(line.startswith("ERROR: ") for line in result.stderr.lines) == 1
        assert "Traceback" not in result.stdout.str() + text
        return text

    def words(self, *words: str) -> list[str]:
        """`llama-perf WORDS` over the tiny rows, with this project's baselines."""
        return [*words, *self.tiny_rows, *self.baselines]

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

    def record(
        self, *, tok_s: float = 100.0, slow: str | None = None, **changes: Any
    ) -> Path:
        """Make up this device's baseline: MEASUREMENT, with changes to every row.

        The quantized row has the square of `tok_s`, so that its ratio to the
        unquantized one is changed as much. With `slow` there are three processes a row:
        that row was far faster than any machine is, and the other one far slower.
        """
        # Without a commit, with which pairs would run.
        environment = session.Session(["cpu"], options=RunRequest()).environment
        environment = replace(environment, commit=None)
        plain, quantized, _not_built = selection.load_file(self.rows)
        speeds = {plain: [tok_s], quantized: [tok_s**2]}
        if slow is not None:
            middle = {row: 1e12 if row.id == slow else 1e-6 for row in speeds}
            by = (0.999, 1.0, 1.001)
            speeds = {row: [middle[row] * factor for factor in by] for row in middle}
        made_up = {"weights": "pth:tiny", "peak_memory_bytes": 10**12, **changes}
        baseline = baseline_of_processes(speeds, environment=environment, **made_up)
        return stored_in(self.path / "baselines", baseline)

    def stand_in(self, process: Callable[[int, RowSpec], WorkerResult]) -> list[str]:
        """Have `process(number, row)` stand for every process; the rows of each."""
        ids: list[str] = []

        def run(row: RowSpec, *, options: RunRequest, **_rest: object) -> WorkerResult:
            assert not options.inject_slowdown
            ids.append(row.id)
            self.compiled_anew.append(options.cold_compile)
            return process(ids.count(row.id), row)

        self.patch.setattr(worker, "run_in_process", run)
        return ids
