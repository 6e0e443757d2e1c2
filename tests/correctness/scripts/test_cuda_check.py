from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_perf.results.run import Report
from llama_perf.rows import selection
from llama_perf.strict_json import from_json
from scripts.offline import steps as cuda_steps
from scripts.offline.cuda_check import REHEARSAL, without_invalid
from scripts.offline.steps import Status, Step, StepRunner
from tests.correctness.support.processes import HANG_S, alive, wait_until

ROOT = Path(__file__).resolve().parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def runner_in(folder: Path, budget_s: float = 2 * HANG_S) -> StepRunner:
    return StepRunner(root=ROOT, out=folder, budget_s=budget_s)


def python_step(code: str, **fields: Any) -> Step:
    wanted: dict[str, Any] = {"limit_s": HANG_S, "log": "log.txt", **fields}
    return Step(name="step", command=[sys.executable, "-c", code], **wanted)


def test_a_step_ends_well_or_failed_and_the_next_one_runs(tmp_path: Path) -> None:
    runner = runner_in(tmp_path)
    assert runner.run(python_step("raise SystemExit(3)")).reason == "exit code 3"
    assert runner.run(python_step("print('here')")).status is Status.OK
    assert (tmp_path / "log.txt").read_text() == "here\n"
    assert [each.status for each in runner.outcomes] == [Status.FAILED, Status.OK]
    assert not runner.all_ok
    assert "step             failed (exit code 3)" in runner.summary()


def out_of_time_once(
    monkeypatch: pytest.MonkeyPatch, happened: Callable[[], bool]
) -> None:
    """Have a step's time be over when that happened, and its grace last for long."""
    wait = subprocess.Popen.wait

    def once(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        monkeypatch.setattr(cuda_steps, "GRACE_S", HANG_S)
        wait_until(happened)
        raise subprocess.TimeoutExpired(process.args, timeout or 0)

    monkeypatch.setattr(subprocess.Popen, "wait", once)


def test_a_step_out_of_time_keeps_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import time
try:
    print("begun", flush=True)
    time.sleep(3600)
except KeyboardInterrupt:
    print("interrupted")
"""
    begun = tmp_path / "log.txt"
    out_of_time_once(monkeypatch, lambda: begun.read_text() == "begun\n")
    outcome = runner_in(tmp_path).run(python_step(code))
    assert (outcome.status, outcome.reason) == (
        Status.OUT_OF_TIME,
        "stopped after 1200 s",
    )
    assert begun.read_text() == "begun\ninterrupted\n"


def test_a_stopped_step_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(3600)
"""
    code = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {child!r}])
"""
    log = tmp_path / "log.txt"
    out_of_time_once(monkeypatch, lambda: log.read_text().endswith("\n"))
    runner_in(tmp_path).run(python_step(code))
    pid = int(log.read_text().split()[0])
    wait_until(lambda: not alive(pid))


def test_a_step_without_time_left_is_not_started(tmp_path: Path) -> None:
    runner = runner_in(tmp_path, budget_s=20.0)
    outcome = runner.run(python_step("print('here')", keep_back_s=15.0))
    assert (outcome.status, outcome.reason) == (Status.OUT_OF_TIME, "not started")
    assert not (tmp_path / "log.txt").exists()


def test_a_step_imports_from_added_folders_first(tmp_path: Path) -> None:
    (tmp_path / "tabulate.py").write_text("print('ours')")
    runner = runner_in(tmp_path)
    runner.add_to_path(tmp_path)
    runner.run(python_step("import tabulate, llama_perf"))
    assert (tmp_path / "log.txt").read_text() == "ours\n"


def test_a_baseline_is_recorded_from_all_but_invalid_rows(tmp_path: Path) -> None:
    source, target = tmp_path / "results.json", tmp_path / "measured.json"
    listed = [{"id": "a", "status": "MEASURED"}, {"id": "b", "status": "INVALID"}]
    verdicts = [{"id": "a"}, {"id": "b"}]
    parts = {"results": listed, "comparisons": verdicts}
    source.write_text(json.dumps({**parts, "selected": 3}))
    assert without_invalid(source, target) == ["b"]
    kept = json.loads(target.read_text())
    kept_parts = {"results": listed[:1], "comparisons": verdicts[:1]}
    # A row that the run did not get to is still missing.
    assert kept == {**kept_parts, "selected": 2}


def test_without_results_nothing_is_left_out(tmp_path: Path) -> None:
    target = tmp_path / "measured.json"
    assert without_invalid(tmp_path / "results.json", target) == []
    assert not target.exists()


# What tells most comes first; tests that run side by side end in any order.
STEPS = (
    *("wheels", "kernels", "machine", "rows", "products", "rows-rest", "baseline"),
    "doctor",
)


def test_steps_side_by_side_each_have_their_log_and_the_summary_has_all(
    tmp_path: Path,
) -> None:
    runner = runner_in(tmp_path)
    steps = [
        Step(
            name=f"step-{number}",
            command=[
                sys.executable,
                "-c",
                f"print({number}); raise SystemExit({code})",
            ],
            limit_s=HANG_S,
            log=f"{number}.txt",
        )
        for number, code in ((1, 0), (2, 5), (3, 0))
    ]
    runner.run_together(steps)
    assert [(tmp_path / f"{n}.txt").read_text() for n in (1, 2, 3)] == [
        *("1\n", "2\n", "3\n")
    ]
    summary = (tmp_path / "summary.txt").read_text()
    assert sorted(line.split(",")[0] for line in summary.splitlines()) == [
        "step-1           ok",
        "step-2           failed (exit code 5)",
        "step-3           ok",
    ]


def test_a_check_that_is_cut_has_the_figures_of_the_steps_before(
    tmp_path: Path,
) -> None:
    out, wheels = tmp_path / "out", tmp_path / "wheels"
    wheels.mkdir()
    words = ["--rehearse", "--wheels", str(wheels), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "cuda_check"), *words],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        wait_until((out / "products.txt").exists)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    report = from_json(Report, (out / "results.json").read_bytes(), source="results")
    assert report.results[0].measurement is not None
    assert "tok/s" in (out / "results.md").read_text()
    assert "ceiling" in json.loads((out / "machine.json").read_text())
    summary = (out / "summary.txt").read_text()
    for name in ("machine", "tests-step-1-of-2", "tests-fused-2-of-2", "rows"):
        assert re.search(rf"^{name} +ok", summary, re.MULTILINE), summary


def cuda_check(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # Also on a machine with a card: one that is hidden.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "cuda_check"), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=HANG_S,
    )


def test_without_a_card_cuda_check_refuses_in_one_line(tmp_path: Path) -> None:
    done = cuda_check("--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"cuda_check: error: no CUDA device: torch .*\n", done.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [(), ("--rehearse",)])
def test_a_python_without_torch_is_refused_in_one_line(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    missing = "No module named 'torch'"
    (tmp_path / "torch.py").write_text(f"raise ModuleNotFoundError({missing!r})")
    out = tmp_path / "out"
    done = cuda_check("--out", str(out), *words, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        f"cuda_check: error: {missing}; use a Python that has torch: .venv/bin/python"
        " after `make setup`\n"
    )
    assert not out.exists()


def test_a_folder_of_wheels_that_is_none_is_refused(tmp_path: Path) -> None:
    done = cuda_check("--wheels", str(tmp_path / "absent"), "--rehearse")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is no folder" in done.stderr


def test_the_rehearsal_runs_every_step_and_says_what_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.md").write_text("of an earlier check")
    done = cuda_check("--rehearse", "--wheels", str(tmp_path), "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout[done.stdout.rindex("\n\n") :]
    places = [re.search(rf"^{name} +ok", told, re.MULTILINE) for name in STEPS]
    assert all(places), told
    starts = [place.start() for place in places if place]
    assert starts == sorted(starts)
    for name in ("machine.txt", "products.txt", "rows.txt", "doctor.txt", "results.md"):
        assert (out / name).read_text().startswith(REHEARSAL), name
    assert done.stdout.endswith(f"results: {out}\n{REHEARSAL}\n")
    for name in ("step-1-of-2", "fused-2-of-2", "others-1-of-4"):
        assert "no CUDA device" in (out / f"tests-{name}.txt").read_text()
        assert (out / f"tests-{name}.xml").is_file()
    machine = json.loads((out / "machine.json").read_text())
    assert machine["ceiling"]["read_gb_s"] > 0
    products = (out / "products.jsonl").read_text().splitlines()
    assert {json.loads(line)["product"] for line in products} == {
        *("qkv", "output", "gate", "down", "head")
    }
    assert all(json.loads(line)["us"] > 0 for line in products)
    assert (out / "summary.txt").read_text().startswith(f"{REHEARSAL}\n\nwheels")
    report = from_json(Report, (out / "results.json").read_bytes(), source="results")
    assert [row.measurement is not None for row in report.results] == [True, True]
    key = report.environment.device_key
    assert (out / "baselines" / key / "baseline.json").is_file()


def test_the_rows_of_the_check_are_rows_of_the_full_sets() -> None:
    listed = selection.load_set("cuda-check")
    full = [selection.load_set(name) for name in ("reference", "torchao", "unfused")]
    assert set(listed) <= set(chain(*full))
    kernels = {row.kernels for row in listed if row.quantization == "int8dq"}
    assert kernels == {"native", "torchao"}
    assert not any(row.kv_cache_quantization for row in listed)


def workflow(path: Path) -> dict[Any, Any]:
    parsed: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return parsed


def steps_of(path: Path) -> list[dict[str, Any]]:
    return [step for job in workflow(path)["jobs"].values() for step in job["steps"]]


def test_there_are_two_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["gpu-perf.yml", "tests.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_bounded_and_asks_for_little(path: Path) -> None:
    parsed = workflow(path)
    assert parsed["permissions"] == {"contents": "read"}
    assert "group" in parsed["concurrency"]
    for job in parsed["jobs"].values():
        assert job["timeout-minutes"] <= 240
    used = [step["uses"] for step in steps_of(path) if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", action)


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):", text, re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_runs_exists(path: Path) -> None:
    commands = [step["run"] for step in steps_of(path) if "run" in step]
    targets = set()
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "))
        for before, word in zip(["", *words], words, strict=False):
            if before == "make":
                assert word in make_targets()
                targets.add(word)
            if word.startswith(("scripts/", "tests/")):
                assert (ROOT / word).exists(), word
    assert targets & {"test", "bench"}


def test_the_options_of_the_gpu_run_are_the_plugins() -> None:
    command = next(s["run"] for s in steps_of(WORKFLOWS[0]) if s.get("name") == "Rows")
    shown = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    options = re.findall(r"--[a-z-]+", command)
    assert {"--row", "--markdown", "--results", "--benchmark-json"} == set(options)
    for option in options:
        assert re.search(rf"^ +{option}\b", shown, re.MULTILINE), option
