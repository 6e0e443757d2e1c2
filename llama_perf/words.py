"""How messages say things: so many of a thing, a value, a name that was misspelt.

Knows no message in particular.
"""

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import Enum
from pathlib import Path

# Of a value in a message: a path fits.
_LONGEST = 400


def counted(number: int, noun: str, plural: str = "") -> str:
    """So many of a thing: "1 row", "2 rows", "3 processes", "2 entries"."""
    if number == 1:
        return f"1 {noun}"
    if not plural:
        plural = f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
    return f"{number} {plural}"


def printable(text: str) -> str:
    """The text without what would steer a terminal, or turn its direction around.

    Such characters, which a file of another's may hold, are written as escapes. Line
    breaks stay.
    """
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def loss_found(share: float) -> str:
    """The smallest loss that is found, a share; "none" where a standstill is not."""
    return f"{share:.1%}" if share < 0.99 else "none"


def shown(value: object) -> str:
    """A value as a user wrote it: text in quotes, and nothing as only Python has it.

    It is shortened where it is long.
    """
    try:
        text = _whole(value)
    except (ValueError, RecursionError):
        # Python writes no integer of thousands of digits, and nothing nested so deeply.
        return "a value too large to be shown"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _whole(value: object) -> str:
    match value:
        case bytes():
            return _whole(value.decode(errors="replace"))
        case str():
            return repr(value)
        case Enum():
            return _whole(value.value)
        case Path():
            return _whole(str(value))
        case bool():
            return str(value).lower()
        case None:
            return "none"
        case Mapping():
            return json.dumps(value, default=str)
        case tuple():
            # A shape, as torch writes it.
            last = "," if len(value) == 1 else ""
            return f"({', '.join(map(_whole, value))}{last})"
        case list():
            return f"[{', '.join(map(_whole, value))}]"
    return str(value)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The question "did you mean X? " with the known name most like `name`, or "".

    A name that begins with `name` comes before others that are like it.
    """
    if not isinstance(name, str):
        return ""
    folded = {one.lower(): one for one in known}
    wanted = name.lower()
    begun = [one for one in folded if len(wanted) > 1 and one.startswith(wanted)]
    if begun:
        close = get_close_matches(wanted, begun, n=1, cutoff=0.0)
    else:
        # Of three letters two are too few: "gpu" does not mean "cpu".
        close = get_close_matches(wanted, folded, n=1, cutoff=0.7)
    return f"did you mean {folded[close[0]]}? " if close else ""
