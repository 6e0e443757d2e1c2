"""The folder of the locks: what the system refuses of it is one line, or nothing."""

import stat
from pathlib import Path

import pytest
import torch

from llama_perf.errors import SpecError, UserError
from llama_perf.run.lock import locked

CPU = torch.device("cpu")


def lock() -> None:
    with locked(CPU, wait=False, notify=lambda _text: None):
        pass


def test_a_folder_that_cannot_hold_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "cpu.lock").mkdir()
    for folder, problem in (
        (tmp_path / "file" / "locks", "it cannot be made: Not a directory"),
        (tmp_path, "it cannot be opened: Is a directory"),
    ):
        monkeypatch.setenv("LLAMA_PERF_LOCKS", str(folder))
        with pytest.raises(SpecError) as caught:
            lock()
        assert str(caught.value).startswith(f"LLAMA_PERF_LOCKS: '{folder}")
        assert str(caught.value).endswith(f" is not allowed; {problem}")


def test_who_has_the_lock_cannot_be_written_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_PERF_LOCKS", str(tmp_path))
    owner = tmp_path / "cpu.owner"
    owner.mkdir()
    with (
        locked(CPU, wait=False, notify=lambda _text: None),
        pytest.raises(UserError, match="cpu: in use by another run, whose process is"),
    ):
        lock()
    owner.rmdir()
    owner.write_bytes(b"\xff")
    lock()
    assert owner.read_text(encoding="utf-8").startswith("process ")


def test_a_folder_that_was_there_stays_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, new = tmp_path / "private", tmp_path / "new"
    private.mkdir(mode=0o700)
    for folder, mode in ((private, 0o700), (new, 0o777)):
        monkeypatch.setenv("LLAMA_PERF_LOCKS", str(folder))
        lock()
        assert stat.S_IMODE(folder.stat().st_mode) == mode
