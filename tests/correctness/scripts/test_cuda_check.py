"""`scripts/cuda_check` without a card: it refuses, or rehearses every step."""

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
from scripts import ROOT
from scripts.offline.cuda_check import without_invalid
from scripts.offline.machine import REHEARSAL
from tests.correctness.support.processes import HANG_S, alive, wait_until

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


NO_TORCH = (
    "No module named 'torch'; use a Python that has torch: .venv/bin/python"
    " after `make setup`"
)


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
    report = read_report(out)
    assert report.results[0].measurement is not None
    assert "tok/s" in (out / "results.md").read_text()
    machine = json.loads((out / "machine.json").read_text())
    assert machine["ceiling"]["read_gb_s"] > 0

    output, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, output + errors
    summary = output[output.rindex("\n\n") :]
    steps = [line.split()[0] for line in summary.split("\n") if " ok" in line]
    assert [step for step in steps if step in STEPS] == STEPS, summary
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
