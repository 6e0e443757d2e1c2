"""Strategies of hypothesis that damage a valid file."""

import json
import re
from collections.abc import Callable
from functools import reduce
from typing import Any

from hypothesis import strategies as st

Damage = Callable[[bytes], bytes]

# What a number, a string or a table can be replaced by, in JSON and in TOML.
WORDS = [
    *("0", "-1", "1e999", "1e30", "9" * 20, "9" * 5000, "2147483648", "4294967296"),
    *("1000000000000", "-9223372036854775809", "0.5", "1e-400", "NaN", "nan", "inf"),
    *("true", "false", "null", '""', '"\\ud800"', '"\\u0000"', '"a\\nb"', '"../../x"'),
    *("[]", "{}", "[[]]", "[1, 2]", '{"a": 1}', '"' + "x" * 3000 + '"', '"é"'),
]
_NESTED = ["[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900]


def bytes_damaged() -> st.SearchStrategy[Damage]:
    """Bytes that flip, vanish, are repeated, or are written over, at any place."""
    pieces = st.one_of(
        st.binary(max_size=9),
        st.sampled_from([b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 8, b"\n"]),
    )

    def edit(place: float, piece: bytes, how: str, size: int) -> Damage:
        def apply(file: bytes) -> bytes:
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

        return apply

    # Heads of files say where the rest is: half of all places are in the first part.
    places = st.one_of(st.floats(0, 0.999), st.floats(0, 0.05))
    hows = st.sampled_from(["flip", "flip", "write", "insert", "repeat", "drop", "cut"])
    edits = st.builds(edit, places, pieces, hows, st.integers(1, 300))
    return _in_turn(edits)


def words_damaged(pattern: str) -> st.SearchStrategy[Damage]:
    """Words of a text that match `pattern` are exchanged for others, or repeated."""

    def edit(place: float, word: str, how: str) -> Damage:
        def apply(file: bytes) -> bytes:
            text = file.decode(errors="replace")
            matches = list(re.finditer(pattern, text))
            if not matches:
                return file
            match = matches[int(place * len(matches))]
            new = {"exchange": word, "double": f"{match[0]}{match[0]}", "drop": ""}
            return (text[: match.start()] + new[how] + text[match.end() :]).encode()

        return apply

    words = st.one_of(st.sampled_from([*WORDS, *_NESTED]), st.text(max_size=5))
    hows = st.sampled_from(["exchange", "exchange", "exchange", "double", "drop"])
    return _in_turn(st.builds(edit, st.floats(0, 0.999), words, hows))


def json_damaged() -> st.SearchStrategy[Damage]:
    """Values that have other types, keys that are missing, unknown or there twice."""

    def edit(place: float, word: str, how: str) -> Damage:
        def apply(file: bytes) -> bytes:
            try:
                document = json.loads(file)
            except ValueError:
                return file
            spots = list(_spots(document))
            if not spots:
                return word.encode()
            parent, key = spots[int(place * len(spots))]
            text = json.dumps(parent[key])
            mark = json.dumps("exchanged")
            match how:
                case "exchange":
                    parent[key] = "exchanged"
                case "drop":
                    del parent[key]
                case "unknown" if isinstance(parent, dict):
                    parent["unknown"] = "exchanged"
                case "double":
                    parent[key], word_ = "exchanged", f"{text}, {word}"
                    if isinstance(parent, dict):
                        word_ = f"{text}, {json.dumps(str(key))}: {word}"
                    return json.dumps(document).replace(mark, word_).encode()
            return json.dumps(document).replace(mark, word).encode()

        return apply

    words = st.sampled_from([*WORDS, *_NESTED])
    hows = st.sampled_from(["exchange"] * 3 + ["drop", "double", "unknown"])
    return _in_turn(st.builds(edit, st.floats(0, 0.999), words, hows))


def _spots(value: Any) -> Any:
    """Each place in a document: what it is in, and its key there."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield value, key
            yield from _spots(inner)


def _in_turn(edits: st.SearchStrategy[Damage]) -> st.SearchStrategy[Damage]:
    def all_of(several: list[Damage]) -> Damage:
        return lambda file: reduce(lambda damaged, edit: edit(damaged), several, file)

    return st.lists(edits, min_size=1, max_size=3).map(all_of)


FORMS = {
    "bytes": bytes_damaged(),
    "json": st.one_of(json_damaged(), json_damaged(), bytes_damaged()),
    "toml": st.one_of(words_damaged(r"[\w.*\"]+|[^\w\s]"), bytes_damaged()),
}
