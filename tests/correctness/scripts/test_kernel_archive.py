import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llama_perf.errors import UserError
from scripts.offline import install, wheelhouse
from scripts.offline.install import install_kernels
from scripts.offline.steps import Status, Step, StepRunner
from scripts.offline.wheelhouse import ALL_SETS, compile_kernels
from tests.correctness.support.processes import HANG_S

triton = pytest.importorskip("triton", reason="there is nothing to compile with")

PYTHON = Path(sys.executable)
HERE = f"triton-{triton.__version__}-python-3.{sys.version_info.minor}"
ROWS = """\
[defaults]
model = "stories15M"
capture = true

[[row]]
fused = true

[[row]]
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheelhouse")
    rows = out / "rows.toml"
    rows.write_text(ROWS)
    made, count = compile_kernels(out, "sm_90", PYTHON, sets=[str(rows)])
    # Five of each layer, a start, a choice and two that measure the card, at least.
    assert count >= 12
    assert {"cuda", "cuda-check", "reference", "published"} <= set(ALL_SETS)
    assert made.name == f"{HERE}-sm_90.tar.xz"
    return made


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StepRunner:
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    return StepRunner(tmp_path, budget_s=2 * HANG_S)


def test_a_card_before_dependent_launches_has_what_measures_it(tmp_path: Path) -> None:
    rows = tmp_path / "rows.toml"
    rows.write_text('[[row]]\nmodel = "tiny"\ndevice = "cpu"\ndtype = "float32"\n')
    command = [sys.executable, "-m", "scripts.offline.compile_rows", "80", "1/1"]
    done = subprocess.run(
        [*command, str(rows)],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("*.cubin"))) == 1


def test_what_travelled_is_found_and_nothing_is_compiled_again(
    archive: Path, runner: StepRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / ".llama-perf" / "triton"

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*.cubin")}

    command = [sys.executable, "-m", "scripts.offline.compile_rows", "90", "1/1"]
    rows = str(archive.parent / "rows.toml")
    with install_kernels(runner, archive.parent):
        before = times()
        assert runner.variables == {"TRITON_CACHE_DIR": str(cache)}
        assert runner.run(Step("rows", [*command, rows], HANG_S)).status is Status.OK
        assert times() == before
        (cache / "KEY").mkdir()
        (cache / "KEY" / "kernel.cubin").touch()
    first, _, last = (outcome.reason for outcome in runner.outcomes)
    assert first == f"{len(before)} unpacked for {HERE}"
    assert last == "1 more compiled here"
    assert len(before) >= 12
    # A cache of the user's own takes them too.
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "own"))
    with install_kernels(runner, archive.parent):
        assert len(list(tmp_path.glob("own/*/*.cubin"))) == len(before)


@pytest.mark.parametrize("share", [0.0, 0.5, None])
def test_a_damaged_archive_is_told_and_the_check_goes_on(
    share: float | None, archive: Path, runner: StepRunner, tmp_path: Path
) -> None:
    intact = archive.read_bytes()
    content = b"no archive" if share is None else intact[: int(share * len(intact))]
    (tmp_path / archive.name).write_bytes(content)
    with install_kernels(runner, tmp_path):
        first, last = runner.outcomes
    assert first.status is Status.FAILED
    assert archive.name in first.reason
    assert re.fullmatch(r"\d+ unpacked for .*", last.reason)


@pytest.mark.parametrize("folder", [True, False])
def test_a_check_says_that_none_were_brought(
    folder: bool, runner: StepRunner, tmp_path: Path
) -> None:
    # Another compiler's are none.
    (tmp_path / f"triton-1.0-{HERE.partition('-python')[2]}-sm_90.tar.xz").touch()
    with install_kernels(runner, tmp_path if folder else None):
        assert runner.variables == {}
    (outcome,) = runner.outcomes
    assert outcome.reason == f"no archive of {HERE}: all are compiled here"


def test_what_cannot_be_compiled_is_told(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho \"No module named 'triton'\" >&2; exit 1\n")
    bare.chmod(0o755)
    for python, reason in (
        (bare, "No module named 'triton'"),
        (tmp_path / "absent", "No such file"),
        (PYTHON, ".*allowed: batch"),
    ):
        with pytest.raises(UserError, match=f"kernels-python: .*: {reason}"):
            compile_kernels(tmp_path, "sm_90", python, sets=["absent"])


@pytest.mark.parametrize(("python", "noted"), [("3.12", False), ("3.13", True)])
def test_kernels_of_another_python_than_the_wheels_are_told(
    python: str,
    noted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = tmp_path / "triton-3.6.0-python-3.12-sm_90.tar.xz"
    archive.touch()
    monkeypatch.setattr(wheelhouse, "compile_kernels", lambda *_: (archive, 7))
    monkeypatch.setattr(wheelhouse, "gather", lambda *_, **_more: [])
    words = ["--python", python, "--out", str(tmp_path), "--kernels"]
    assert wheelhouse.main([*words, "sm_90"]) == 0
    output = capsys.readouterr().out
    assert "triton-3.6.0-python-3.12-sm_90.tar.xz, 7 kernels" in output
    assert ("note: the wheels are for Python 3.13" in output) == noted
    with pytest.raises(SystemExit):
        wheelhouse.main([*words, "sm_70"])
    assert "sm_90" in capsys.readouterr().err
