"""`scripts/cuda_check` without a card: it refuses, or rehearses every step."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import psutil
import pytest

from llama_perf.results.run import Report
from llama_perf.rows import selection
from llama_perf.strict_json import from_json
from scripts.offline.cuda_check import REHEARSAL, without_invalid
from scripts.offline.options import ROOT
from tests.correctness.support.processes import HANG_S, alive, wait_until

# The most telling steps come first; tests that run side by side end in any order.
STEPS = (
    *("wheels", "kernels", "machine", "rows", "products", "rows-rest", "baseline"),
    "doctor",
)


def environment(**variables: str) -> dict[str, str]:
    """Also on a machine with a card: one that is hidden."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", **variables}


def command(script: str, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / script), *words]


def cuda_check(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("cuda_check", *words),
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=HANG_S,
    )


def start_rehearsal(
    script: str, folder: Path, **variables: str
) -> subprocess.Popen[str]:
    """Start a rehearsal with its results in `folder`/out and no wheels."""
    (folder / "wheels").mkdir()
    words = ["--wheels", str(folder / "wheels"), "--out", str(folder / "out")]
    return subprocess.Popen(
        command(script, "--rehearse", *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(**variables),
    )


def read_report(out: Path) -> Report:
    return from_json(Report, (out / "results.json").read_bytes(), source="results")


def test_a_baseline_is_recorded_from_all_but_invalid_rows(tmp_path: Path) -> None:
    source, target = tmp_path / "results.json", tmp_path / "measured.json"
    assert without_invalid(source, target) == []
    assert not target.exists()
    rows = [{"id": "a", "status": "MEASURED"}, {"id": "b", "status": "INVALID"}]
    verdicts = [{"id": "a"}, {"id": "b"}]
    source.write_text(
        json.dumps({"results": rows, "comparisons": verdicts, "selected": 3})
    )
    assert without_invalid(source, target) == ["b"]
    # A row that the run did not get to is still missing.
    assert json.loads(target.read_text()) == {
        "results": rows[:1],
        "comparisons": verdicts[:1],
        "selected": 2,
    }


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


def test_a_check_that_is_killed_has_the_figures_of_the_steps_before(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    process = start_rehearsal("cuda_check", tmp_path)
    try:
        wait_until((out / "products.txt").exists)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert read_report(out).results[0].measurement is not None
    assert "tok/s" in (out / "results.md").read_text()
    assert "ceiling" in json.loads((out / "machine.json").read_text())
    summary = (out / "summary.txt").read_text()
    for name in ("machine", "tests-step-1-of-2", "tests-fused-2-of-2", "rows"):
        assert re.search(rf"^{name} +ok", summary, re.MULTILINE), summary


@pytest.mark.parametrize(
    ("script", "step", "log"),
    [
        ("cuda_check", "machine", "machine.txt"),
        ("cuda_table", "rehearsal", "rehearsal-1-of-1.txt"),
    ],
)
def test_a_check_that_is_asked_to_end_leaves_nothing(
    tmp_path: Path, script: str, step: str, log: str
) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    process = start_rehearsal(script, tmp_path, TMPDIR=str(scratch))
    wait_until((out / log).exists)
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.startswith(f"{script}: ended by SIGTERM; ")
    assert errors.count("\n") == 1
    wait_until(lambda: not any(alive(child.pid) for child in children))
    assert not list(scratch.glob("cuda-*"))
    assert f"{step:<16} interrupted" in (out / "summary.txt").read_text()


def test_the_rehearsal_runs_every_step_and_says_what_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.md").write_text("of an earlier check")
    done = cuda_check("--rehearse", "--wheels", str(tmp_path), "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout[done.stdout.rindex("\n\n") :]
    matches = [re.search(rf"^{name} +ok", summary, re.MULTILINE) for name in STEPS]
    starts = [match.start() if match else -1 for match in matches]
    assert starts == sorted(starts), summary
    assert starts[0] >= 0, summary
    for name in ("machine.txt", "products.txt", "rows.txt", "doctor.txt", "results.md"):
        assert (out / name).read_text().startswith(REHEARSAL), name
    assert done.stdout.endswith(f"results: {out}\n{REHEARSAL}\n")
    for name in ("step-1-of-2", "fused-2-of-2", "others-1-of-4"):
        assert "no CUDA device" in (out / f"tests-{name}.txt").read_text()
        assert (out / f"tests-{name}.xml").is_file()
    machine = json.loads((out / "machine.json").read_text())
    assert machine["ceiling"]["read_gb_s"] > 0
    lines = (out / "products.jsonl").read_text().splitlines()
    products = [json.loads(line) for line in lines]
    names = {"qkv", "output", "gate", "down", "head"}
    assert {product["product"] for product in products} == names
    assert all(product["us"] > 0 for product in products)
    assert (out / "summary.txt").read_text().startswith(f"{REHEARSAL}\n\nwheels")
    report = read_report(out)
    assert [row.measurement is not None for row in report.results] == [True, True]
    key = report.environment.device_key
    assert (out / "baselines" / key / "baseline.json").is_file()


def test_the_rows_of_the_check_are_rows_of_the_full_sets() -> None:
    rows = selection.load_set("cuda-check")
    full = [selection.load_set(name) for name in ("reference", "torchao", "unfused")]
    assert set(rows) <= set(chain(*full))
    kernels = {row.kernels for row in rows if row.quantization == "int8dq"}
    assert kernels == {"native", "torchao"}
    assert not any(row.kv_cache_quantization for row in rows)
