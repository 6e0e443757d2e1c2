"""`llama-perf compare` with real processes: its lines, its table, its file."""

import os
import re
import signal
import sys
from contextlib import closing, nullcontext
from threading import Event
from typing import Any
from unittest.mock import Mock

import pytest

from llama_perf.cli import bisect
from llama_perf.results.run import Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run import paired
from llama_perf.run.interrupts import Terminated
from llama_perf.run.options import RunRequest
from llama_perf.run.worker import Worker
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.made_up_workers import BASE, Machine, MadeUpWorker
from tests.correctness.support.plugin_project import FP6, PLAIN, Project
from tests.correctness.support.processes import HANG_S
from tests.correctness.support.record_samples import CPU_ROW

pytest_plugins = ["pytester"]


def words_of(project: Project, *more: str) -> list[str]:
    project.results.parent.mkdir(exist_ok=True)
    words = ["compare", "--base-python", sys.executable, "--pairs", "4"]
    words += ["--rows", str(project.rows), "--checkpoints", "checkpoints"]
    return [*words, "--results", str(project.results), *more]


def test_this_environment_compared_with_itself(project: Project) -> None:
    project.patch.setattr(paired, "Worker", Worker)
    project.patch.delenv("PYTHONPATH")
    # The working directory's modules are not in the processes' way.
    (project.path / "torch.py").write_text("raise ImportError", encoding="utf-8")
    words = words_of(project, "--row", "*none*", "--row", "*fp6*")
    # What it decides on a busy core is not asked. A step too many is most of a sample.
    out, err = project.cli(*words, "--inject-slowdown", "*none*=50", code=None)
    found = r"a loss of \d+\.\d% is found 9 times in 10"
    line = rf"^\[1/2\] none +\d+\.\d\d tok/s .* pairs; {found}\)  "
    assert re.search(line, err, re.MULTILINE)
    assert "[2/2] fp6.torchao" in err
    assert f"baseline: {sys.executable}\n" in out
    report = project.report()
    decided, not_run = report.comparisons
    assert (decided.id, not_run.id) == (PLAIN, FP6)
    assert ", resident processes" in decided.reason
    assert decided.change_interval is not None
    assert not_run.verdict is Verdict.NOT_RUN
    measurement = report.results[0].measurement
    assert measurement is not None
    assert measurement.injected_slowdown == 0.5
    assert report.environment.device_key.startswith("cpu-")


@pytest.mark.parametrize(
    ("error", "code", "by"),
    [(KeyboardInterrupt, 130, ""), (Terminated, 143, " by SIGTERM")],
)
def test_an_interrupt_keeps_what_was_compared(
    project: Project, error: type[KeyboardInterrupt], code: int, by: str
) -> None:
    machine = Machine()

    def worker(**how: Any) -> MadeUpWorker:
        # The second row has processes of its own, which do not get to it.
        if machine.count("head", "run"):
            raise error
        return MadeUpWorker(machine, **how)

    project.patch.setattr(paired, "Worker", worker)
    project.patch.setattr(paired, "_ROWS_OF_WORKERS", 1)
    project.patch.setattr(paired, "main_threads_on_one_core", lambda _: nullcontext())
    out, err = project.cli(*words_of(project), code=code)
    assert err.endswith(
        f"\ninterrupted{by}: 2 of 3 rows did not end; a comparison cannot be continued,"
        " only run again\n"
    )
    assert "1 row: 1 run" in out
    (result,) = project.report().results
    assert result.id == PLAIN


def test_an_interrupt_does_not_wait_for_a_row_that_is_being_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The threads that wait for both sides' processes end with these."""
    machine, killed = Machine(), Event()

    class Building(MadeUpWorker):
        def load(self, _row: RowSpec) -> None:
            if self.side == "base":
                os.kill(os.getpid(), signal.SIGINT)
            assert killed.wait(HANG_S)

        def kill(self) -> None:
            killed.set()

    monkeypatch.setattr(paired, "Worker", lambda **how: Building(machine, **how))
    base = paired.Side(package=BASE)
    with (
        pytest.raises(KeyboardInterrupt),
        closing(
            paired.PairedProcesses([CPU_ROW], options=RunRequest(), base=base)
        ) as processes,
    ):
        processes.measure(CPU_ROW, print)
    assert killed.is_set()
    assert machine.count("base", "close") == machine.count("head", "close") == 1


def test_a_bisection_that_is_ended_goes_on(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, result in (
        ("resolve", "0" * 40),
        ("run_git", Mock(returncode=1)),
        ("checked_out", nullcontext(BASE)),
    ):
        monkeypatch.setattr(bisect, name, Mock(return_value=result))
    monkeypatch.setattr(bisect, "bisect", Mock(side_effect=Terminated))
    words = ["--good", "1", "--bad", "2", "--set", "cpu", "--row", "*fp6*"]
    _, err = cli("bisect", *words, code=143)
    assert err == "interrupted by SIGTERM; the same command goes on\n"
