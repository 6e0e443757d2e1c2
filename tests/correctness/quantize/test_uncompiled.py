"""Where libraries were installed uncompiled, and what pytest's settings have to do."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
IMPORT = """\
import sys, warnings
import torch
sys.pycache_prefix = sys.argv[1]
warnings.filterwarnings("error", message=".*invalid escape sequence")
from llama_perf.quantize.registry import import_torchao
import_torchao()
"""


def succeeds(*words: object, folder: Path = ROOT) -> None:
    argv = [sys.executable, *map(str, words)]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-1500:]


def test_torchaos_source_warns_of_nothing_while_it_is_compiled(tmp_path: Path) -> None:
    """Its escape sequences: of a row under pytest they made a SyntaxError."""
    succeeds("-c", IMPORT, tmp_path)


def test_a_test_may_record_what_it_saw_in_a_file_of_results(tmp_path: Path) -> None:
    test = 'def test_it(record_property):\n    record_property("seen", 1)\n'
    (tmp_path / "test_it.py").write_text(test)
    words = ["-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path]
    words += ["-p", "no:cacheprovider", f"--junit-xml={tmp_path / 'results.xml'}"]
    succeeds(*words, tmp_path, folder=tmp_path)
    assert 'name="seen"' in (tmp_path / "results.xml").read_text()
