"""Where libraries were installed uncompiled, and what pytest's settings have to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
IMPORT = """\
import sys, warnings
import torch
sys.pycache_prefix = sys.argv[1]
warnings.filterwarnings("error", message=".*invalid escape sequence")
from llama_perf.quantize.torchao_import import import_torchao
import_torchao()
"""
RECORDING = """\
def test_it(record_property):
    record_property("seen", 1)
"""


def test_torchaos_source_warns_of_nothing_while_it_is_compiled(tmp_path: Path) -> None:
    """Its escape sequences: of a row under pytest they made a SyntaxError."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1500:]


def test_a_test_may_record_what_it_saw_in_a_file_of_results(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(RECORDING)
    words = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "-q"]
    words += ["-p", "no:cacheprovider", f"--junit-xml={tmp_path / 'results.xml'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-1500:]
    assert 'name="seen"' in (tmp_path / "results.xml").read_text()
