"""How messages say numbers of things, values, and names that were misspelt."""

from enum import Enum
from pathlib import Path

import pytest

from llama_perf.rows.schemes import AUTOQUANT
from llama_perf.words import counted, did_you_mean, loss_found, shown


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "row", "0 rows"),
        (1, "row", "1 row"),
        (2, "row", "2 rows"),
        (1, "process", "1 process"),
        (3, "process", "3 processes"),
        (2, "prompt token", "2 prompt tokens"),
    ],
)
def test_numbers_of_things(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


def test_a_plural_of_its_own() -> None:
    assert counted(1, "entry", "entries") == "1 entry"
    assert counted(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("int5wo", "'int5wo'"),
        (b"bytes\xff", "'bytes\N{REPLACEMENT CHARACTER}'"),
        (Path("a/b"), "'a/b'"),
        (Colour.RED, "'red'"),
        (True, "true"),
        (None, "none"),
        (float("nan"), "nan"),
        ([1, "a", None], "[1, 'a', none]"),
        ((4, 64), "(4, 64)"),
        ((4,), "(4,)"),
        ({"a": [1, None]}, '{"a": [1, null]}'),
    ],
)
def test_a_value_is_shown_as_a_user_writes_it(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("autoqant", "autoquant"),
        ("AUTOQUANT", "autoquant"),
        # The beginning of a name is that name.
        ("auto", "autoquant"),
        ("autoquant-int", "autoquant-int4"),
        ("gptq", None),
        ("a", None),
        ("", None),
        (7, None),
    ],
)
def test_a_name_that_was_misspelt(name: object, meant: str | None) -> None:
    wanted = "" if meant is None else f"did you mean {meant}? "
    assert did_you_mean(name, AUTOQUANT) == wanted


def test_a_short_name_is_not_taken_for_another() -> None:
    assert did_you_mean("gpu", ("cuda", "cpu")) == ""


def test_a_loss_that_nothing_finds_is_none() -> None:
    assert loss_found(0.064) == "6.4%"
    assert loss_found(0.9999) == "none"
