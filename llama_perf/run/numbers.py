"""Numbers in options, of which every wrong one is refused in the same words.

Wrong are text that is no number, NaN, infinity, and a number out of bounds.
"""

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from llama_perf.words import shown

T = TypeVar("T", int, float)


@dataclass(frozen=True, slots=True)
class Number(Generic[T]):
    """The `type` of an option of argparse or pytest.

    `allowed` says in words which numbers `is_allowed` lets pass.
    """

    kind: Callable[[str], T]
    allowed: str
    is_allowed: Callable[[T], bool] = math.isfinite

    def __call__(self, text: str) -> T:
        """The number; raises argparse's error, which argparse completes by the name."""
        value: T | str = text
        with suppress(ValueError):
            value = number = self.kind(text)
            if self.is_allowed(number):
                return number
        message = f"{shown(value)} is not allowed; allowed: {self.allowed}"
        raise argparse.ArgumentTypeError(message)


WHOLE = Number(int, "a whole number")
FINITE = Number(float, "a finite number")
SECONDS = Number(
    float, "a number of seconds above 0", lambda seconds: 0 < seconds < math.inf
)
TEXT_TOKENS = Number(
    int, "a whole number, 32 to 8192", lambda count: 32 <= count <= 8192
)
"""Fewer tokens of a text say little; logits of more take gigabytes."""
