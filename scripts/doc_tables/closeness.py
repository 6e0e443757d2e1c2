"""Limits of closeness for every scheme, and two tables of docs/correctness.md.

A scheme that rounds only weights has the same figures on every processor: `redraws.py`
says why. Its limits in `closeness_limits.csv` are the measured figures with a margin
for other versions of libraries: 1.5 dB, half as much KL divergence again, and two
standard errors over the n tokens compared for top-1 agreement and perplexity. These
errors are sqrt(p (1 - p) / n) for an agreement of p, and sqrt(2 KL / n) for the
perplexity: the log of the ratio of two close distributions has a variance of twice
their divergence. Where the perplexity grows a hundredfold, as from pruning, they are
errors of its logarithm.

A scheme that rounds activations draws its errors anew on each processor. Its limits are
the mean of many such draws (`redraws.csv`), moved by `DEVIATIONS` standard deviations.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from scripts.doc_tables.document import (
    Table,
    github_table,
    place,
    rows_between,
    select,
    show_progress,
)
from scripts.doc_tables.figures import Closeness
from scripts.doc_tables.redraws import DEVIATIONS, Redraws, redraw
from scripts.doc_tables.smollm2 import scheme_figures

PLACE = place("correctness.md", "closeness")
REDRAWS_PLACE = place("correctness.md", "redraws")
FIGURES = (
    "dB",
    "at least",
    "KL (nats)",
    "at most",
    "top-1",
    "at least",
    "perplexity",
    "within",
)
"""The headers of each figure and of its limit."""
_HEADERS = ("scheme", "kernels", "compared with", "tokens", *FIGURES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The smallest or largest figures that a scheme may have, in units of `Closeness`.

    `length`: the number of tokens of the fixed text that are compared; None for all.
    """

    min_db: float
    max_kl_nats: float
    min_top1: float
    max_perplexity_change: float
    length: int | None = None

    @classmethod
    def over(cls, redraws: Redraws) -> Limits:
        """Limits that hold on every processor, rounded away from the mean."""

        def beyond(figure: tuple[float, float], sign: int, places: int) -> float:
            mean, deviation = figure
            edge = mean + sign * DEVIATIONS * deviation
            # An error in the last bit of a float is no step further.
            steps = round(edge * 10**places * sign, 6)
            return float(sign * math.ceil(steps) / 10**places)

        mean, deviation = redraws.perplexity_change
        return cls(
            min_db=beyond(redraws.signal_to_noise_db, -1, 1),
            max_kl_nats=beyond(redraws.kl_nats, 1, 4),
            min_top1=beyond(redraws.top1, -1, 2),
            max_perplexity_change=beyond((abs(mean), deviation), 1, 3),
        )

    def broken_by(self, figures: Closeness) -> list[str]:
        """The limits that `figures` break, in words; empty if all of them hold."""
        change = abs(figures.perplexity_change)
        checks = [
            (figures.signal_to_noise_db >= self.min_db, "dB", self.min_db),
            (figures.kl_nats <= self.max_kl_nats, "KL", self.max_kl_nats),
            (figures.top1 >= self.min_top1, "top-1", self.min_top1),
            (
                change <= self.max_perplexity_change,
                "perplexity",
                self.max_perplexity_change,
            ),
        ]
        return [
            f"{name} limit {limit}: {figures}" for ok, name, limit in checks if not ok
        ]

    def cells(self) -> tuple[str, str, str, str]:
        """The limits as the document has them."""
        return (
            f"{self.min_db:.1f}",
            f"{self.max_kl_nats:.4f}",
            f"{self.min_top1:.2f}",
            f"{self.max_perplexity_change:.1%}",
        )


Key: TypeAlias = tuple[str, str, str]
"""(scheme, kernels, the model that they are compared with): a row of the table."""


def _lines(name: str) -> Iterator[dict[str, str]]:
    with Path(__file__).with_name(name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _redraws_of(line: dict[str, str]) -> Redraws:
    def pair(figure: str) -> tuple[float, float]:
        return float(line[figure]), float(line[f"{figure}_deviation"])

    return Redraws(
        signal_to_noise_db=pair("db"),
        kl_nats=pair("kl_nats"),
        top1=pair("top1"),
        perplexity_change=pair("perplexity_change"),
    )


def _limits_of(line: dict[str, str]) -> Limits:
    if not line["min_db"]:
        return Limits.over(REDRAWN[line["scheme"], line["kernels"]])
    return Limits(
        min_db=float(line["min_db"]),
        max_kl_nats=float(line["max_kl_nats"]),
        min_top1=float(line["min_top1"]),
        max_perplexity_change=float(line["max_perplexity_change"]),
        length=int(line["tokens"]) if line["tokens"] else None,
    )


REDRAWN: Mapping[tuple[str, str], Redraws] = {
    (line["scheme"], line["kernels"]): _redraws_of(line)
    for line in _lines("redraws.csv")
}
# SmolLM2's K of 576 and 1536 admits groups of 32 and 64. torchao's int4 takes a CPU as
# long for each token of a text as for a step of decoding, so it and its native twins
# are compared on the first tokens only. Pruning without training hurts by itself, so a
# pruned scheme is also compared with the pruned model.
ROWS: Mapping[Key, Limits] = {
    (line["scheme"], line["kernels"], line["reference"]): _limits_of(line)
    for line in _lines("closeness_limits.csv")
}
LIMITS: Mapping[tuple[str, str], Limits] = {
    (scheme, kernels): limits
    for (scheme, kernels, reference), limits in ROWS.items()
    if reference == "unquantized"
}
DEFAULT = LIMITS["uintx-4-64", "native"]
"""The limits of a scheme that has none in closeness_limits.csv."""
# torchao's own hqq goes over whole weights, two minutes for this model.
SLOW = {("int4wo-32-hqq", "torchao"), ("int4wo-64-hqq", "torchao")}


def tables(names: Sequence[str]) -> list[Table]:
    """The table of closeness, with the rows of the schemes `names` measured anew."""
    schemes = select(names, {scheme for scheme, _, _ in ROWS})
    rows = {key: limits for key, limits in ROWS.items() if key[0] in schemes}
    measured = {}
    for (scheme, kernels, reference), limits in rows.items():
        show_progress(f"{scheme} ({kernels}), compared with the {reference} model")
        figures = scheme_figures(scheme, kernels, limits.length, reference)
        measured[scheme, kernels, reference] = figures.closeness
    problems = [
        f"{'.'.join(key)}: {problem}"
        for key, limits in rows.items()
        for problem in limits.broken_by(measured[key])
    ]
    return [Table(place=PLACE, text=markdown(measured), problems=problems)]


def redraw_tables(names: Sequence[str]) -> list[Table]:
    """The table of redraws, with the rows of the schemes `names` drawn anew."""
    schemes = select(names, {scheme for scheme, _ in REDRAWN})
    drawn = {}
    for scheme, kernels in REDRAWN:
        if scheme in schemes:
            show_progress(f"{scheme} ({kernels})")
            drawn[scheme, kernels] = redraw(scheme, kernels)
    return [Table(place=REDRAWS_PLACE, text=redraws_markdown(drawn))]


def markdown(measured: Mapping[Key, Closeness]) -> str:
    """The document's table, with the rows in `measured` replaced."""
    documented = _documented_rows()
    cells = [
        _cells(key, measured[key], limits) if key in measured else documented[key]
        for key, limits in ROWS.items()
    ]
    return github_table(cells, _HEADERS)


def _cells(key: Key, figures: Closeness, limits: Limits) -> list[str]:
    texts = (
        f"{figures.signal_to_noise_db:.1f}",
        f"{figures.kl_nats:.4f}",
        f"{figures.top1:.3f}",
        f"{figures.perplexity_change:+.2%}",
    )
    pairs = zip(texts, limits.cells(), strict=True)
    return [*key, _tokens_cell(limits), *(cell for pair in pairs for cell in pair)]


def _tokens_cell(limits: Limits) -> str:
    return "all" if limits.length is None else f"first {limits.length}"


def _documented_rows() -> dict[Key, list[str]]:
    return {(row[0], row[1], row[2]): row for row in rows_between(*PLACE)}


def documented_limits() -> dict[Key, tuple[str, ...]]:
    """The limits in docs/correctness.md, as text."""
    return {key: (row[3], *row[5::2]) for key, row in _documented_rows().items()}


def limits_as_documented() -> dict[Key, tuple[str, ...]]:
    """The limits that are checked, in the document's form."""
    return {
        key: (_tokens_cell(limits), *limits.cells()) for key, limits in ROWS.items()
    }


def redraws_markdown(drawn: Mapping[tuple[str, str], Redraws]) -> str:
    """The table of redraws; a scheme that is not in `drawn` has those of the limits."""
    cells = [
        (*key, *drawn.get(key, redraws).cells((2, 4, 3, 1)))
        for key, redraws in REDRAWN.items()
    ]
    return github_table(
        cells, ("scheme", "kernels", "dB", "KL (nats)", "top-1", "perplexity")
    )
