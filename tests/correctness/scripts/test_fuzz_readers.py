"""What the fuzzer counts and keeps; the fuzzing itself takes an hour."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from scripts.studies import fuzz_readers
from scripts.studies.fuzz_readers import Place, run_reader


def test_runs_of_all_processes_and_findings_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path / "config")
    clock = iter([0.0, 0.0, 5.0, 9.5, 9.5])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    commands = []

    def ended(words: list[str], **_: Any) -> None:
        # The first process crashed, so a second one goes on.
        commands.append(words)
        number = len(commands)
        (place.folder / f"runs.{number}").write_text(str(number * 64), "ascii")
        (place.findings / f"crash-{number}").touch()
        (place.findings / "KeyError-config-7").touch()
        (place.findings / "KeyError-config-7.txt").touch()

    monkeypatch.setattr(subprocess, "run", ended)
    place.make()
    (place.folder / "runs.0").write_text("1000", "ascii")
    assert run_reader("config", place, 10.0) == ["config", 64 + 128, 3, 10]
    for left, words in zip((10, 5), commands, strict=True):
        assert f"-max_total_time={left}" in words
        assert words[words.index("--one") :][1:4] == [
            "config",
            "--folder",
            str(tmp_path),
        ]


def test_an_unknown_reader_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz_readers", "config", "wrong"])
    monkeypatch.setattr(fuzz_readers, "run_reader", Mock(side_effect=AssertionError))
    with pytest.raises(SystemExit):
        fuzz_readers.main()
    assert "wrong: no such reader; allowed: baseline, " in capsys.readouterr().err
