from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llama_perf.errors import UserError
from scripts.offline import kernel_archive, wheelhouse
from scripts.offline.kernel_archive import (
    ALL_SETS,
    Compiler,
    compile_kernels,
    kernel_keys,
    report_compiled,
    unpack,
    unpack_kernels,
)
from scripts.offline.steps import Status, StepRunner

triton = pytest.importorskip("triton", reason="there is nothing to compile with")

ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path(sys.executable)
HERE = Compiler(
    triton=triton.__version__, python=".".join(platform.python_version_tuple()[:2])
)
ROWS = """\
[defaults]
model = "stories15M"
capture = true
fused = true

[[row]]

[[row]]
quantization = "int8wo"
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.toml"
    file.write_text(ROWS)
    return file


@pytest.fixture(scope="module")
def archive(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheelhouse")
    made, count = compile_kernels(out, "sm_90", PYTHON, sets=[str(rows)])
    # Five of each layer, a start, a choice and two that measure the card, at least.
    assert count >= 12
    return made


def compile_here(cache: Path, rows: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "scripts.offline.compile_rows", "90", "1/1", str(rows)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(cache)},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def test_what_travelled_is_found_and_nothing_is_compiled_again(
    rows: Path, archive: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "elsewhere"
    count = unpack(archive, cache)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.cubin")}
    assert len(before) == count
    compile_here(cache, rows)
    assert before == {path: path.stat().st_mtime_ns for path in cache.rglob("*.cubin")}


def test_the_archive_says_whose_kernels_they_are(archive: Path) -> None:
    name = f"triton-{HERE.triton}-python-{HERE.python}-sm_90.tar.xz"
    assert archive.name == name
    assert HERE.archives(archive.parent) == [archive]
    other = Compiler(triton="1.0", python=HERE.python)
    assert other.archives(archive.parent) == []


def test_a_check_finds_them_and_counts_what_it_compiles_itself(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setattr(kernel_archive, "ROOT", tmp_path)
    runner = StepRunner(root=ROOT, out=tmp_path, budget_s=60)
    unpacked = unpack_kernels(runner, archive.parent)
    assert unpacked is not None
    assert unpacked.cache == tmp_path / ".llama-perf" / "triton"
    assert runner.variables == {"TRITON_CACHE_DIR": str(unpacked.cache)}
    assert unpacked.keys == kernel_keys(unpacked.cache)
    (unpacked.cache / "KEY").mkdir()
    (unpacked.cache / "KEY" / "kernel.cubin").touch()
    report_compiled(runner, unpacked)
    reasons = [outcome.reason for outcome in runner.outcomes]
    assert reasons == [
        f"{len(unpacked.keys)} unpacked for {HERE.label}",
        "1 more compiled here",
    ]


def test_a_cache_of_the_users_own_takes_them(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "own"))
    unpacked = unpack_kernels(
        StepRunner(root=ROOT, out=tmp_path, budget_s=60), archive.parent
    )
    assert unpacked is not None
    assert kernel_keys(tmp_path / "own") == unpacked.keys


def test_a_damaged_archive_is_told_and_the_check_goes_on(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "own"))
    intact = archive.read_bytes()
    for number, content in enumerate((b"", b"no archive", intact[: len(intact) // 2])):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / archive.name).write_bytes(content)
        runner = StepRunner(root=ROOT, out=tmp_path, budget_s=60)
        assert unpack_kernels(runner, folder) is not None
        first, last = runner.outcomes
        assert first.status is Status.FAILED
        assert archive.name in first.reason
        assert re.fullmatch(r"\d+ unpacked for .*", last.reason)


def test_a_check_says_that_none_were_brought(tmp_path: Path) -> None:
    runner = StepRunner(root=ROOT, out=tmp_path, budget_s=60)
    assert unpack_kernels(runner, tmp_path) is None
    assert runner.outcomes[0].reason == (
        f"no archive for {HERE.label}: all are compiled here"
    )
    assert runner.variables == {}


def test_a_python_that_cannot_compile_is_named(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho \"No module named 'triton'\" >&2; exit 1\n")
    bare.chmod(0o755)
    with pytest.raises(
        UserError, match=r"kernels-python: .*: No module named 'triton'"
    ):
        compile_kernels(tmp_path, "sm_90", bare)
    with pytest.raises(UserError, match=r"kernels-python: .*: No such file"):
        compile_kernels(tmp_path, "sm_90", tmp_path / "absent")


def test_rows_that_cannot_be_compiled_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"kernels-python: .*allowed: batch"):
        compile_kernels(tmp_path, "sm_90", PYTHON, sets=["absent"])


def test_every_set_of_a_check_and_of_the_tables_is_compiled() -> None:
    assert {"cuda", "cuda-check", "reference", "published"} <= set(ALL_SETS)


def test_an_unknown_target_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        wheelhouse.main(["--kernels", "sm_70"])
    assert "sm_90" in capsys.readouterr().err


@pytest.mark.parametrize(("python", "noted"), [("3.12", False), ("3.13", True)])
def test_kernels_of_another_python_than_the_wheels_are_told(
    python: str,
    noted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def compiled(out: Path, target: str, _python: Path) -> tuple[Path, int]:
        archive = out / Compiler(triton="3.6.0", python="3.12").archive(target)
        archive.write_bytes(b"")
        return archive, 7

    monkeypatch.setattr(wheelhouse, "compile_kernels", compiled)
    monkeypatch.setattr(wheelhouse, "gather", lambda _target, _out, **_more: [])
    words = ["--kernels", "sm_90", "--python", python, "--out", str(tmp_path)]
    assert wheelhouse.main(words) == 0
    output = capsys.readouterr().out
    assert "triton-3.6.0-python-3.12-sm_90.tar.xz, 7 kernels" in output
    assert ("note: the wheels are for Python 3.13" in output) == noted
