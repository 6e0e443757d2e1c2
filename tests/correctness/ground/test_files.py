"""What a disk refuses is one line that names the file."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import RecordError, SpecError, WriteError
from llama_perf.files import (
    append_line,
    cache_folder,
    check_folder,
    check_new_folder,
    check_temporary_folder,
    check_writable,
    check_writable_anew,
    is_absent,
    make_folder,
    read_text,
    write_atomically,
)
from llama_perf.strict_json import parse_json, parse_toml


def unreadable(folder: Path) -> dict[Path, str]:
    """Paths at which something is that cannot be read as text, and why."""
    pipe, loop, broken, binary = (
        folder / name for name in ("pipe", "loop", "broken", "binary")
    )
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    broken.symlink_to(folder / "none")
    binary.write_bytes(b"\xff\xfe")
    return {
        folder: "Is a directory",
        pipe: "it is a pipe",
        Path("/dev/null"): "it is no regular file",
        loop: "Too many levels of symbolic links",
        loop / "file": "Too many levels of symbolic links",
        broken: "No such file or directory",
        binary: "it is not UTF-8 text",
    }


def test_what_is_there_and_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in unreadable(tmp_path).items():
        assert not is_absent(path)
        with pytest.raises(RecordError) as caught:
            read_text(path, error=RecordError)
        assert str(caught.value) == f"{path}: cannot be read: {reason}"


def test_what_is_absent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file" / "none"):
        assert is_absent(path)


def test_a_null_character_in_a_path() -> None:
    assert not is_absent(Path("a\0b"))
    with pytest.raises(RecordError, match="cannot be read: embedded null"):
        read_text(Path("a\0b"), error=RecordError)


@pytest.mark.parametrize("depth", [2000, 100_000])
def test_nested_too_deeply(depth: int) -> None:
    for parse, text in (
        (parse_json, "[" * depth + "]" * depth),
        (parse_json, '{"a":' * depth + "1" + "}" * depth),
        (parse_toml, "a = " + "[" * depth + "]" * depth),
        (parse_toml, "a = " + "{ a = " * depth + "1" + "}" * depth),
    ):
        with pytest.raises(RecordError, match="here: it is nested too deeply"):
            parse(text, source="here")


def test_an_integer_of_thousands_of_digits() -> None:
    for parse, text in ((parse_json, "1" * 5000), (parse_toml, "a = " + "1" * 5000)):
        with pytest.raises(RecordError, match=r"here: Invalid (JSON|TOML): Exceeds"):
            parse(text, source="here")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match=r"LOCKS: .* it cannot be made: Not a dir"):
        make_folder("LOCKS", tmp_path / "file" / "locks")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file/new: cannot be written: "):
        write_atomically(tmp_path / "file" / "new", "text")


def test_a_file_that_cannot_be_continued(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="none/new: cannot be written: No such file"):
        append_line(tmp_path / "none" / "new", "line")


@pytest.mark.parametrize(
    "check", [check_writable, check_writable_anew, check_folder, check_new_folder]
)
def test_a_place_that_cannot_be_looked_at(tmp_path: Path, check: Any) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path / ("n" * 300), loop / "file"):
        with pytest.raises(SpecError, match=r"^here: "):
            check("here", path)


def test_no_device_is_written_to() -> None:
    """As root a file would take its place."""
    with pytest.raises(SpecError, match=r"'/dev/null' .* it is no regular file"):
        check_writable("results", Path("/dev/null"))


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "LLAMA_PERF_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("llama_perf.files.is_checkout", lambda: False)
    # As where the user has no entry in /etc/passwd.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(SpecError, match=r"HOME: none .* set LLAMA_PERF_CACHE"):
        cache_folder()


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    monkeypatch.setenv("TMPDIR", "/proc/none")
    with pytest.raises(SpecError, match="TMPDIR: '/proc/none' is not allowed; no fol"):
        check_temporary_folder()
