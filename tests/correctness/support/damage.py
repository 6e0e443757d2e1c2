"""Ways to damage a valid file, for hypothesis and for a fuzzer's random numbers."""

import json
import random
import re
from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any

from hypothesis import strategies as st

Damage = Callable[[bytes], bytes]

# What a number, a string or a table can be exchanged for, in JSON and in TOML.
WORDS = [
    *("0", "-1", "1e999", "1e30", "9" * 20, "9" * 5000, "2147483648", "4294967296"),
    *("1000000000000", "-9223372036854775809", "0.5", "1e-400", "NaN", "nan", "inf"),
    *("true", "false", "null", '""', '"\\ud800"', '"\\u0000"', '"a\\nb"', '"../../x"'),
    *("[]", "{}", "[[]]", "[1, 2]", '{"a": 1}', '"' + "x" * 3000 + '"', '"é"'),
]
NESTED = ["[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900]
_PIECES = [b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 8, b"\n", b"\x01", b"\x80"]
_BYTES_HOWS = ["flip", "flip", "write", "insert", "repeat", "drop", "cut"]
_WORDS_HOWS = ["exchange", "exchange", "exchange", "double", "drop"]
_JSON_HOWS = ["exchange", "exchange", "exchange", "double", "drop", "unknown"]
_TOML = r"[\w.*\"]+|[^\w\s]"


def _change_bytes(
    file: bytes, *, place: float, piece: bytes, how: str, size: int
) -> bytes:
    """Bytes that flip, vanish, are repeated, or are written over, at any place."""
    at = int(place * len(file))
    before, after = file[:at], file[at:]
    match how:
        case "flip":
            flipped = bytes([after[0] ^ (1 << size % 8)]) if after else b""
            return before + flipped + after[1:]
        case "write":
            return before + piece + after[len(piece) :]
        case "insert":
            return before + piece + after
        case "repeat":
            return before + after[:size] + after
        case "drop":
            return before + after[size:]
    return before


def _change_words(file: bytes, *, place: float, word: str, how: str) -> bytes:
    """A word of a text is exchanged for another, doubled, or dropped."""
    text = file.decode(errors="replace")
    matches = list(re.finditer(_TOML, text))
    if not matches:
        return file
    match = matches[int(place * len(matches))]
    new = {"exchange": word, "double": match[0] * 2, "drop": ""}[how]
    return (text[: match.start()] + new + text[match.end() :]).encode()


def _change_json(file: bytes, *, place: float, word: str, how: str) -> bytes:
    """A value of another type, a key that is missing, unknown, or there twice."""
    try:
        document = json.loads(file)
    except (ValueError, RecursionError):
        return file
    spots = list(_spots(document))
    if not spots:
        return word.encode()
    parent, key = spots[int(place * len(spots))]
    mark = json.dumps("exchanged")
    if how == "drop":
        del parent[key]
    elif how == "double":
        is_map = isinstance(parent, dict)
        name = f"{json.dumps(key)}: " if is_map else ""
        word = f"{json.dumps(parent[key])}, {name}{word}"
        parent[key] = "exchanged"
    elif how == "unknown" and isinstance(parent, dict):
        parent["unknown"] = "exchanged"
    else:
        parent[key] = "exchanged"
    return json.dumps(document).replace(mark, word).encode()


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place in a document: what it is in, and its key there."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield value, key
            yield from _spots(inner)


def _by(change: Callable[..., bytes], **choices: Any) -> st.SearchStrategy[Damage]:
    return st.fixed_dictionaries(choices).map(lambda chosen: partial(change, **chosen))


def _in_turn(edits: st.SearchStrategy[Damage]) -> st.SearchStrategy[Damage]:
    def all_of(several: list[Damage]) -> Damage:
        return lambda file: reduce(lambda damaged, edit: edit(damaged), several, file)

    return st.lists(edits, min_size=1, max_size=3).map(all_of)


_ANYWHERE = st.floats(0, 0.999)
_BYTES = _by(
    _change_bytes,
    # Heads of files say where the rest is: half of all places are in the first part.
    place=st.one_of(_ANYWHERE, st.floats(0, 0.05)),
    piece=st.one_of(st.binary(max_size=9), st.sampled_from(_PIECES)),
    how=st.sampled_from(_BYTES_HOWS),
    size=st.integers(1, 300),
)
_WORD = st.one_of(st.sampled_from([*WORDS, *NESTED]), st.text(max_size=5))
_JSON = _by(
    _change_json,
    place=_ANYWHERE,
    word=st.sampled_from([*WORDS, *NESTED]),
    how=st.sampled_from(_JSON_HOWS),
)
_TEXT = _by(
    _change_words, place=_ANYWHERE, word=_WORD, how=st.sampled_from(_WORDS_HOWS)
)
FORMS = {
    "bytes": _in_turn(_BYTES),
    "json": _in_turn(st.one_of(_JSON, _JSON, _BYTES)),
    "toml": _in_turn(st.one_of(_TEXT, _BYTES)),
}


def damaged(file: bytes, form: str, chance: random.Random) -> bytes:
    """`file` after one change of its form, by random numbers."""
    place = chance.random()
    if form == "bytes":
        return _change_bytes(
            file,
            place=place if chance.random() < 0.5 else place / 20,
            piece=chance.choice(_PIECES),
            how=chance.choice(_BYTES_HOWS),
            size=chance.randint(1, 300),
        )
    if form == "json":
        how = chance.choice(_JSON_HOWS)
        return _change_json(file, place=place, word=chance.choice(WORDS), how=how)
    how = chance.choice(_WORDS_HOWS)
    return _change_words(file, place=place, word=chance.choice(WORDS), how=how)
