"""A damaged file is read, or refused in one line that names it."""

import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_perf.errors import UserError
from tests.correctness.support.damage import FORMS, Damage
from tests.correctness.support.readers import READERS, outcome

EXAMPLES = 60
LONGEST_S = 120
# What a damaged file of some kilobytes may take, beside what is taken already.
ROOM = 4 << 30


@pytest.fixture(autouse=True)
def _little_memory_and_time() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError(f"reading took {LONGEST_S} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * resource.getpagesize() + ROOM
    handler = signal.signal(signal.SIGALRM, give_up)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    signal.alarm(LONGEST_S)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.parametrize("name", READERS)
def test_only_a_users_error_comes_out(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    reader = READERS[name]
    path = reader.make(tmp_path_factory.mktemp(name))
    valid = path.read_bytes()
    assert outcome(reader, path, valid, reader.part_of(valid)) is None

    @settings(max_examples=EXAMPLES)
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        damage: Damage = data.draw(FORMS[reader.form])
        outcome(reader, path, valid, damage(reader.part_of(valid)))

    damaged()


def test_what_does_not_count_as_a_users_error(tmp_path: Path) -> None:
    path = READERS["config"].make(tmp_path)
    valid = path.read_bytes()
    for error, raised in (
        (UserError("dim: 0 is not allowed"), AssertionError),
        (KeyError("hidden_size"), KeyError),
    ):
        broken = replace(READERS["config"], read=Mock(side_effect=error))
        with pytest.raises(raised):
            outcome(broken, path, valid, valid)
    for word in ("0", '"wide"', "[" * 100_000):
        change = valid.replace(b'"hidden_size": 32', b'"hidden_size": ' + word.encode())
        assert change != valid
        line = outcome(READERS["config"], path, valid, change)
        assert line is not None
        assert line.startswith(f"{path}: ")
