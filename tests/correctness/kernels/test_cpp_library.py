"""The operators in C++: compiled once for each version of their sources."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama_perf.kernels import cpp_library
from tests.correctness.support.cpp_operators import NEEDED

pytestmark = NEEDED


def test_the_same_sources_in_another_folder_are_not_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As those of a revision are, that is compared with this checkout."""
    assert cpp_library.load() is None
    before = {path: path.stat().st_mtime_ns for path in libraries()}
    other = tmp_path / "cpp"
    shutil.copytree(cpp_library.SOURCES, other)
    monkeypatch.setattr(cpp_library, "SOURCES", other)
    assert cpp_library.load.__wrapped__() is None
    assert before
    assert {path: path.stat().st_mtime_ns for path in libraries()} == before


def test_a_build_that_was_cut_short_is_done_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    builds = []

    def build(name: str, own: Path, _flags: object) -> None:
        builds.append(name)
        (own / f"{name}.so").write_bytes(b"half of a libr")
        raise RuntimeError("Error building extension\nmore")

    monkeypatch.setattr(cpp_library, "_build", build)
    for _ in range(2):
        problem = cpp_library.load.__wrapped__()
        reason = "C++ operators are not compiled here: Error building extension"
        assert problem == reason
    assert len(builds) == 2


@pytest.mark.parametrize("problem", ["a full disk", "a file in its place"])
def test_a_build_that_cannot_be_kept_lies_elsewhere(
    problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "operators"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    if problem == "a full disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    else:
        folder.write_text("", encoding="utf-8")
    assert cpp_library.why_not_kept() is not None
    places: list[Path] = []
    monkeypatch.setattr(
        cpp_library, "_build", lambda _name, own, _flags: places.append(own)
    )
    assert cpp_library.load.__wrapped__() is None
    (own,) = places
    assert not own.is_relative_to(tmp_path)
    assert own.is_dir()


def test_a_damaged_build_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    builds: list[Path] = []

    def build(name: str, own: Path, _flags: object) -> None:
        builds.append(own)
        (own / f"{name}.so").write_bytes(b"no library")
        (own / "built").touch()

    monkeypatch.setattr(cpp_library, "_build", build)
    for _ in range(2):
        assert cpp_library.load.__wrapped__() is None
    assert len(builds) == 2


def libraries() -> list[Path]:
    return list(cpp_library.folder().glob("*/*.so"))
