"""Streams that are closed, full or of another encoding, and a folder that is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.correctness.support.plugin_project import ROOT

ROWS = "rows --set cpu"


def shell(
    command: str, folder: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A command of sh in which `llama-perf` is this one."""
    return subprocess.run(
        [
            "sh",
            "-c",
            f'llama_perf() {{ "{sys.executable}" -m llama_perf "$@"; }}; {command}',
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", [ROWS, f"{ROWS} --json"])
def test_a_full_disk_behind_stdout_is_one_line(command: str) -> None:
    ended = shell(f"llama_perf {command} > /dev/full")
    assert ended.stderr == "llama-perf: error: stdout: No space left on device\n"
    assert ended.returncode == 2


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_an_empty_one(closed: str) -> None:
    ended = shell(f"llama_perf {ROWS} {closed}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_what_an_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    rows = tmp_path / "rows.toml"
    rows.write_text('[[row]]\nmodel = "caf\u00e9"\n', encoding="utf-8")
    ended = shell(f"llama_perf rows --rows {rows}", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "caf\\xe9" in ended.stdout


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    ended = shell(f'rmdir "{gone}"; llama_perf {ROWS}', gone)
    reason = "the working directory cannot be used: No such file or directory"
    assert ended.stderr == f"llama-perf: error: {reason}\n"
    assert ended.returncode == 2
