"""A warning fails a test where our code is its cause, and no other package's does."""

import shutil
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parents[3]
# Python warns of the first two while it compiles them.
THEIRS = r"""
import warnings

PATTERN = "\."
SAME = 1 is 1

def warn_of_itself():
    for category in (DeprecationWarning, PendingDeprecationWarning, SyntaxWarning):
        warnings.warn("theirs is hidden", category)
    for category in (FutureWarning, UserWarning):
        warnings.warn("theirs is shown", category)

def warn_of_its_caller():
    warnings.warn("theirs", DeprecationWarning, stacklevel=2)
"""
OURS = """
import warnings

def warn():
    warnings.warn("ours")
"""
TESTS = r"""
import gc, threading
import numpy as np
import pytest
import llama_perf, scripts, theirs

def of_the_package(): llama_perf.warn()
def of_a_script(): scripts.warn()
def of_a_call(): theirs.warn_of_its_caller()
def of_numbers(): np.mean([])
def of_a_file(): open(__file__)
def of_a_thread():
    thread = threading.Thread(target=int, args=("no number",))
    thread.start()
    thread.join()

def test_theirs():
    theirs.warn_of_itself()

WARN = [of_the_package, of_a_script, of_a_call, of_numbers, of_a_file, of_a_thread]

@pytest.mark.parametrize("warn", WARN)
def test_ours(warn):
    warn()
    gc.collect()
"""
FAILURES = """\
*of_the_package] - UserWarning: ours
*of_a_script] - UserWarning: ours
*of_a_call] - DeprecationWarning: theirs
*of_numbers] - RuntimeWarning: *
*of_a_file] - pytest.PytestUnraisableExceptionWarning: *
*of_a_thread] - pytest.PytestUnhandledThreadExceptionWarning: *
"""


def test_only_our_own_warnings_are_errors(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "pyproject.toml", pytester.path)
    sources = {
        "llama_perf/__init__.py": OURS,
        "scripts/__init__.py": OURS,
        "elsewhere/theirs.py": THEIRS,
        "tests/test_ours.py": TESTS,
    }
    for name, source in sources.items():
        path = pytester.path / name
        path.parent.mkdir()
        path.write_text(source, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path / "elsewhere"))
    # So wide that no reason is cut.
    monkeypatch.setenv("COLUMNS", "300")
    words = ("-p", "no:hypothesispytest", "-p", "no:cacheprovider", "tests")
    result = pytester.runpytest_subprocess(*words)
    result.assert_outcomes(passed=1, failed=6, warnings=2)
    result.stdout.fnmatch_lines_random(FAILURES.splitlines())
    result.stdout.fnmatch_lines(["*theirs is shown*"])
    result.stdout.no_fnmatch_line("*theirs is hidden*")
