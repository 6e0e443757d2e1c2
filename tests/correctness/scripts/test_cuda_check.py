"""Steps in processes of their own, and `scripts/cuda_check` and `cuda_table` of them.

Without a card the scripts refuse, or rehearse every step.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import psutil
import pytest

from llama_perf.cli.main import COMMANDS, main
from llama_perf.results.run import Report
from llama_perf.rows import selection
from llama_perf.strict_json import read_json
from scripts import ROOT
from scripts.offline import cuda_check, steps
from scripts.offline.cuda_check import without_invalid
from scripts.offline.machine import REHEARSAL
from scripts.offline.steps import Status, Step, StepRunner
from tests.correctness.support import processes
from tests.correctness.support.processes import HANG_S, alive, wait_until


@pytest.fixture
def runner(tmp_path: Path) -> StepRunner:
    return StepRunner(tmp_path, budget_s=2 * HANG_S)


def python_step(code: str, name: str = "step", keep_back_s: float = 0.0) -> Step:
    return Step(name, [sys.executable, "-c", code], HANG_S, keep_back_s)


def summary_of(folder: Path) -> list[str]:
    """How each step ended, without its time."""
    lines = (folder / "summary.txt").read_text().splitlines()
    return sorted(line.split(",")[0] for line in lines)


def test_steps_end_well_or_failed_and_the_next_one_runs(
    runner: StepRunner, tmp_path: Path
) -> None:
    runner.run_together(
        [
            python_step(f"print({number}); raise SystemExit({code})", f"step-{number}")
            for number, code in ((1, 0), (2, 5), (3, 0))
        ]
    )
    logs = [(tmp_path / f"step-{number}.txt").read_text() for number in (1, 2, 3)]
    assert logs == ["1\n", "2\n", "3\n"]
    (tmp_path / "tabulate.py").write_text("print('ours')")
    runner.path.insert(0, str(tmp_path))
    runner.run(python_step("import tabulate, llama_perf", "added"))
    # Added folders come first.
    assert (tmp_path / "added.txt").read_text() == "ours\n"
    runner.run(python_step("print()", "late", keep_back_s=2 * HANG_S - 1))
    assert not (tmp_path / "late.txt").exists()
    assert summary_of(tmp_path) == [
        "added            ok",
        "late             out of time (not started)",
        "step-1           ok",
        "step-2           failed (exit code 5)",
        "step-3           ok",
    ]


# Both print their process's number. The second one outlives an interrupt.
DEAF = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(3600)
"""
PARENT = f"""
import os, subprocess, sys
print(os.getpid(), flush=True)
try:
    subprocess.Popen([sys.executable, "-c", {DEAF!r}]).wait()
except KeyboardInterrupt:
    print("interrupted")
"""


def printed_by(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_a_step_out_of_time_keeps_what_it_wrote_and_leaves_no_process(
    runner: StepRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "step.txt"
    clock = processes.clock_that_waits_for(lambda: len(printed_by(log)) > 1)
    clock.sleep = time.sleep
    runner._deadline = 2 * HANG_S
    monkeypatch.setattr(steps, "time", clock)
    outcome = runner.run(python_step(PARENT))
    reason = f"stopped after {HANG_S:.0f} s"
    assert (outcome.status, outcome.reason) == (Status.OUT_OF_TIME, reason)
    *pids, last = printed_by(log)
    assert last == "interrupted"
    wait_until(lambda: not any(alive(int(pid)) for pid in pids))


CHECK = f"""
import sys
from pathlib import Path
from scripts.offline.steps import Step, StepRunner

runner = StepRunner(Path(sys.argv[1]), budget_s=3600)
python = [sys.executable, "-c"]
try:
    with runner.interruptible():
        runner.run(Step("first", [*python, ""], 600))
        steps = [Step(name, [*python, {PARENT!r}], 600) for name in sys.argv[2:]]
        runner.run_together(steps) if len(steps) > 1 else runner.run(*steps)
        runner.run(Step("last", ["true"], 600))
except KeyboardInterrupt:
    sys.exit(f"ended by {{runner.signal.name}}")
"""


@pytest.mark.parametrize("names", [("one",), ("one", "two")], ids=len)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_ends_the_steps_and_their_children(
    tmp_path: Path, number: signal.Signals, names: tuple[str, ...]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CHECK, str(tmp_path), *names],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    logs = [tmp_path / f"{name}.txt" for name in names]
    wait_until(lambda: all(len(printed_by(log)) == 2 for log in logs))
    pids = [int(pid) for log in logs for pid in printed_by(log)]
    process.send_signal(number)
    assert process.communicate()[1] == f"ended by {number.name}\n"
    wait_until(lambda: not any(map(alive, pids)))
    interrupted = [f"{name:<16} interrupted" for name in names]
    assert summary_of(tmp_path) == ["first            ok", *interrupted]
    assert not (tmp_path / "last.txt").exists()
    assert [printed_by(log)[2:] for log in logs] == [["interrupted"]] * len(names)


# The most telling steps come first; tests that run side by side end in any order.
STEPS = ["wheels", "kernels", "machine", "rows", "products", "rows-rest", "baseline"]
STEPS += ["doctor"]


def start(script: str, *words: str | Path, **variables: str) -> subprocess.Popen[str]:
    """Also on a machine with a card: one that is hidden."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / script), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **variables},
    )


def test_a_baseline_is_recorded_from_all_but_invalid_rows(tmp_path: Path) -> None:
    source, target = tmp_path / "results.json", tmp_path / "measured.json"
    assert without_invalid(source, target) == []
    assert not target.exists()
    rows = [{"id": "a", "status": "MEASURED"}, {"id": "b", "status": "INVALID"}]
    run = {"results": rows, "comparisons": [{"id": "a"}, {"id": "b"}], "selected": 3}
    source.write_text(json.dumps(run))
    assert without_invalid(source, target) == ["b"]
    # A row that the run did not get to is still missing.
    measured = {"results": rows[:1], "comparisons": [{"id": "a"}], "selected": 2}
    assert json.loads(target.read_text()) == measured


NO_TORCH = "No module named 'torch'; use a Python that has torch: .venv/bin/python"
NO_TORCH += " after `make setup`"


@pytest.mark.parametrize(
    ("words", "torch", "error"),
    [
        ("", True, r"no CUDA device: torch .*"),
        ("", False, NO_TORCH),
        ("--rehearse", False, NO_TORCH),
        ("--rehearse --wheels absent", True, "wheels: 'absent' is no folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    tmp_path: Path, words: str, torch: bool, error: str
) -> None:
    variables = {}
    if not torch:
        code = "raise ModuleNotFoundError(\"No module named 'torch'\")"
        (tmp_path / "torch.py").write_text(code)
        variables["PYTHONPATH"] = str(tmp_path)
    out = tmp_path / "out"
    process = start("cuda_check", "--out", out, *words.split(), **variables)
    output, errors = process.communicate(timeout=HANG_S)
    assert (process.returncode, output) == (2, "")
    assert re.fullmatch(f"cuda_check: error: {error}\n", errors)
    assert not out.exists()


@pytest.mark.parametrize(
    ("script", "step"), [("cuda_check", "machine"), ("cuda_table", "rehearsal-1-of-1")]
)
def test_a_check_that_is_asked_to_end_leaves_nothing(
    tmp_path: Path, script: str, step: str
) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    words = ("--rehearse", "--wheels", tmp_path, "--out", out)
    process = start(script, *words, TMPDIR=str(scratch))
    wait_until((out / f"{step}.txt").exists)
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert re.fullmatch(f"{script}: ended by SIGTERM; .*\n", errors)
    wait_until(lambda: not any(alive(child.pid) for child in children))
    assert not list(scratch.glob("cuda-*"))
    assert f"{step:<16} interrupted" in (out / "summary.txt").read_text()


@pytest.mark.parametrize("rehearse", [True, False])
def test_the_steps_of_a_check_are_commands_in_their_order(
    rehearse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they do, a rehearsal shows."""
    ran: list[Step] = []

    def run(step: Step) -> None:
        ran.append(step)
        (tmp_path / "results.json").touch()

    runner = StepRunner(tmp_path, budget_s=HANG_S)
    monkeypatch.setattr(runner, "run", run)
    arguments = Namespace(rehearse=rehearse)
    cuda_check._check(arguments, runner, tmp_path)
    assert [step.name for step in ran if step.name in STEPS] == STEPS[2:]
    for command in COMMANDS.values():
        monkeypatch.setattr(command, "main", lambda _arguments: 0)
    for step in ran:
        python, option, module, *words = step.command
        assert (python, option) == (sys.executable, "-m")
        assert find_spec(module) is not None
        # Its options are those of the command.
        assert module != "llama_perf" or main(words) == 0
        files = [word for word in words if word.startswith("tests/")]
        assert all((ROOT / file).is_file() for file in files)


@pytest.mark.slow
def test_the_rehearsal_runs_every_step_and_says_what_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.md").write_text("of an earlier check")
    process = start("cuda_check", "--rehearse", "--wheels", tmp_path, "--out", out)
    wait_until(lambda: process.poll() is not None or (out / "products.txt").exists())
    # A check that is stopped has the figures of the steps before.
    summary = (out / "summary.txt").read_text()
    assert summary.startswith(f"{REHEARSAL}\n\nwheels")
    for name in ("machine", "tests-step-1-of-2", "tests-fused-2-of-2", "rows"):
        assert re.search(rf"^{name} +ok", summary, re.MULTILINE), summary
    report = read_json(Report, out / "results.json")
    assert report.results[0].measurement is not None
    assert "tok/s" in (out / "results.md").read_text()
    machine = json.loads((out / "machine.json").read_text())
    assert machine["ceiling"]["read_gb_s"] > 0

    output, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, output + errors
    summary = output[output.rindex("\n\n") :]
    done = [line.split()[0] for line in summary.split("\n") if " ok" in line]
    assert [step for step in done if step in STEPS] == STEPS, summary
    for name in ("machine.txt", "products.txt", "rows.txt", "doctor.txt", "results.md"):
        assert (out / name).read_text().startswith(REHEARSAL), name
    assert output.endswith(f"results: {out}\n{REHEARSAL}\n")
    for name in ("step-1-of-2", "fused-2-of-2", "others-1-of-4"):
        assert "no CUDA device" in (out / f"tests-{name}.txt").read_text()
        assert (out / f"tests-{name}.xml").is_file()
    lines = (out / "products.jsonl").read_text().splitlines()
    products = [json.loads(line) for line in lines]
    names = {"qkv", "output", "gate", "down", "head"}
    assert {product["product"] for product in products} == names
    assert all(product["us"] > 0 for product in products)
    report = read_json(Report, out / "results.json")
    assert [row.measurement is not None for row in report.results] == [True, True]
    key = report.environment.device_key
    assert (out / "baselines" / key / "baseline.json").is_file()


def test_the_rows_of_the_check_are_rows_of_the_full_sets() -> None:
    rows = selection.load_set("cuda-check")
    names = ("reference", "torchao", "unfused", "persistent")
    full = [selection.load_set(name) for name in names]
    assert set(rows) <= set(chain(*full))
    kernels = {row.kernels for row in rows if row.quantization == "int8dq"}
    assert kernels == {"native", "torchao"}
    assert not any(row.kv_cache_quantization for row in rows)
