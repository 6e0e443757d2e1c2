"""What the charts of a run show, as plain values: labels, groups, the Pareto front.

Knows no library that draws.
"""

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

from llama_perf.results.run import Verdict
from llama_perf.rows.schemes import FAMILIES, OWN, UNQUANTIZED, Scheme
from llama_perf.rows.spec import RowSpec

Datum = dict[str, Any]
"""One point of a chart: text and numbers by the names of fields."""

# Okabe and Ito's colours, but for yellow, which hardly shows on white, and with grey
# for black, which does not show on black.
BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
VERMILION, PINK, GREY = "#D55E00", "#CC79A7", "#888888"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION)

Looks = dict[str, tuple[str, str]]
_STAR = "M0,-1L.3,-.3L1,-.3L.4,.1L.6,.9L0,.4L-.6,.9L-.4,.1L-1,-.3L-.3,-.3Z"


def with_stars(known: Looks, families: Iterable[str]) -> Looks:
    """The looks that are known, and stars for all other families."""
    others = (name for name in families if name not in known)
    stars = zip(others, cycle((*COLOURS, GREY)), strict=False)
    return known | {name: (colour, _STAR) for name, colour in stars}


# Related families have one colour, and shapes that differ.
_KNOWN = {
    UNQUANTIZED: (GREY, "circle"),
    "int8wo": (BLUE, "square"),
    "int8dq": (SKY, "diamond"),
    "float8wo": (BLUE, "triangle-left"),
    "float8dq-tensor": (SKY, "triangle-right"),
    "float8dq-row": (SKY, "triangle-up"),
    "fp6": (GREEN, "triangle-up"),
    "llm-int8": (SKY, "cross"),
    "int4wo": (VERMILION, "cross"),
    "nf4": (VERMILION, "square"),
    "fp4": (VERMILION, "triangle-up"),
    "uintx": (PINK, "triangle-down"),
    "sparse-marlin": (GREEN, "diamond"),
    "autoquant": (ORANGE, "circle"),
    "autoquant-int4": (ORANGE, "triangle-right"),
}
LOOKS_OF_FAMILIES = with_stars(_KNOWN, FAMILIES)
"""Colours and shapes by the family of a scheme."""

LOOKS_OF_VERDICTS = {
    Verdict.SLOWER: (VERMILION, "triangle-down"),
    Verdict.LARGER: (VERMILION, "square"),
    Verdict.WORSE: (VERMILION, "triangle-right"),
    Verdict.UNDECIDED: (ORANGE, "cross"),
    Verdict.ALREADY_SLOWER: (PINK, "triangle-down"),
    Verdict.ALREADY_LARGER: (PINK, "square"),
    Verdict.SAME: (BLUE, "circle"),
    Verdict.FASTER: (GREEN, "triangle-up"),
    Verdict.SMALLER: (GREEN, "diamond"),
    # Their speed was not judged.
    Verdict.INCOMPARABLE: (GREY, "diamond"),
    Verdict.NOT_COMPARED: (GREY, "circle"),
    Verdict.NO_BASELINE: (GREY, "square"),
    Verdict.NOT_RUN: (GREY, "triangle-left"),
    Verdict.INVALID: (GREY, "cross"),
}
"""Verdicts that fail a row have other shapes than those that do not."""


def rounded(value: float, digits: int = 4) -> float:
    """The value with so many significant digits, which is as much as a chart shows."""
    return float(f"{value:.{digits}g}")


def family(row: RowSpec) -> str:
    """The family of a row's scheme; one of the user's own is its own family."""
    if row.quantization is None:
        return UNQUANTIZED
    known = Scheme.parse(row.quantization, kernels=row.kernels).family
    return row.scheme if known == OWN else known


def label(row: RowSpec) -> str:
    """What texts call the row."""
    return row.title or row.id


def listed(words: Sequence[str], most: int) -> str:
    """The first of some words with commas between, and how many more there are."""
    more = f", and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def domain(values: Sequence[float], *, least: float) -> list[float]:
    """What an axis shows of some values: at least so much room at both ends.

    Where none of the values is visible, a chart knows no domain of its own.
    """
    room = max(0.05 * (max(values) - min(values)), least)
    return [rounded(min(values) - room), rounded(max(values) + room)]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The numbers of the points that none beats, by their first value, then the second.

    A point is beaten by one that is larger in one value and no smaller in the other.
    So equal points are on the front together, or neither is.
    """
    by_first = sorted(range(len(points)), key=lambda number: points[number])
    front: list[int] = []
    best: tuple[float, float] | None = None
    # From the largest first value down, each has to be the largest yet in the second.
    for number in reversed(by_first):
        point = points[number]
        if best is None or point[1] > best[1]:
            best = point
        if point == best:
            front.append(number)
    return front[::-1]
