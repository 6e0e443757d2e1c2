"""The folder of compiled code: whose it is, how large it gets, who may remove it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llama_perf import files
from llama_perf.llama import code_cache
from llama_perf.llama.code_cache import kept_code
from llama_perf.measure.environment import machine_notes

CPU = torch.device("cpu")
NAMES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_PERF_CACHE", str(tmp_path))
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    code_cache._entry.cache_clear()
    return tmp_path / "compiled"


def used(key: str, *, size: int = 0, at_s: int | None = None) -> Path:
    """The entry of `key` after a use, with so many bytes in it."""
    code_cache._entry.cache_clear()
    with kept_code(key):
        entry = Path(os.environ[NAMES[0]]).parent
        assert Path(os.environ[NAMES[1]]).parent == entry
    (entry / "code").write_bytes(b"." * size)
    if at_s is not None:
        os.utime(entry / "key", (at_s, at_s))
    return entry


def test_each_key_has_an_entry_and_the_variables_are_put_back(folder: Path) -> None:
    one, other = used("one"), used("other")
    assert one.parent == other.parent == folder
    assert one != other
    assert used("one") == one
    assert not any(name in os.environ for name in NAMES)


def test_a_folder_that_the_user_names_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(NAMES[1], "theirs")
    with kept_code("one"), kept_code("other"):
        assert os.environ[NAMES[1]] == "theirs"


def test_the_entries_that_were_used_longest_ago_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(code_cache, "MAX_BYTES", 2500)
    old, new, newer = (used(key, size=1000, at_s=int(key)) for key in "213")
    assert (old.exists(), new.exists(), newer.exists()) == (True, True, True)
    code_cache.make_room()
    assert (old.exists(), new.exists(), newer.exists()) == (True, False, True)
    assert list(code_cache.entries()) == [old, newer]


def test_nothing_is_removed_while_another_run_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(code_cache, "MAX_BYTES", 0)
    entry = used("one", size=1000)
    compiling = """
import sys
from llama_perf.llama.code_cache import kept_code
with kept_code("another"):
    print(flush=True)
    sys.stdin.read()
"""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", compiling]
    # Its own making of room comes before it compiles.
    (entry / "key").rename(entry / "no key yet")
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (entry / "no key yet").rename(entry / "key")
        code_cache.make_room()
        assert entry.exists()
        process.communicate()
    code_cache.make_room()
    assert not entry.exists()


@pytest.mark.parametrize(
    "problem", ["a file in its way", "a full disk", "a lock of another kind"]
)
def test_where_none_can_be_kept_a_run_goes_on_and_says_so(
    problem: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any("not kept" in note for note in machine_notes(CPU))
    if problem == "a full disk":
        free = SimpleNamespace(free=files.MIN_FREE_BYTES - 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    elif problem == "a lock of another kind":
        (folder / "lock").mkdir(parents=True)
    else:
        folder.parent.rmdir()
        folder.parent.write_text("")
    (note,) = (note for note in machine_notes(CPU) if "not kept" in note)
    assert str(folder.parent) in note
    with kept_code("one"):
        kept = Path(os.environ[NAMES[0]])
    assert folder not in kept.parents
    assert not list(folder.glob("*/key"))


@pytest.mark.parametrize("place", ["", "key"])
def test_what_is_no_entry_makes_room_for_one(place: str, folder: Path) -> None:
    with kept_code("one"):
        entry = Path(os.environ[NAMES[0]]).parent
    assert entry.parent == folder
    shutil.rmtree(entry)
    if place:
        (entry / place).mkdir(parents=True)
    else:
        entry.write_text("no folder", encoding="utf-8")
    code_cache._entry.cache_clear()
    with kept_code("one"):
        assert Path(os.environ[NAMES[0]]).parent == entry
        assert (entry / "key").is_file()
