"""The rules of the house that no linter checks."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TESTS = ROOT / "tests" / "correctness"
MAX_LINES = 350
# Folders of tests that belong to no room. `ground` tests the modules beside the rooms.
OTHER_TESTS = {"ground", "scripts", "support", "closeness", "cuda", "fuzz"}


def test_no_module_is_too_long() -> None:
    for folder in ("llama_perf", "scripts", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = path.read_text(encoding="utf-8").splitlines()
            assert len(lines) <= MAX_LINES, path


def test_the_tests_mirror_the_rooms() -> None:
    rooms = {path.parent.name for path in (ROOT / "llama_perf").rglob("*.py")}
    tests = {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")}
    assert tests <= rooms | OTHER_TESTS
