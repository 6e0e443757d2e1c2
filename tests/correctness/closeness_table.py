"""Limits of closeness for every scheme, and the table of docs/correctness.md.

A limit is what was measured (the table beside it in the docs) with this margin:
1.5 dB, half as much KL divergence again, 0.03 of top-1 agreement, and half as much
change of the perplexity again and 0.2 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from llama_perf.closeness import Closeness

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "correctness.md"
BEGIN, END = "<!-- closeness: begin -->", "<!-- closeness: end -->"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The least or the most that a scheme may show; units as in `Closeness`."""

    least_db: float
    most_kl_nats: float
    least_top1: float
    most_perplexity_change: float

    def broken_by(self, found: Closeness) -> list[str]:
        """What of `found` is outside, in words; empty if all is inside."""
        checks = [
            (found.signal_to_noise_db >= self.least_db, "dB", self.least_db),
            (found.kl_nats <= self.most_kl_nats, "KL", self.most_kl_nats),
            (found.top1 >= self.least_top1, "top-1", self.least_top1),
            (
                abs(found.perplexity_change) <= self.most_perplexity_change,
                "perplexity",
                self.most_perplexity_change,
            ),
        ]
        return [
            f"{name} limit {limit}: {found}" for held, name, limit in checks if not held
        ]


# (scheme, kernels); SmolLM2's K of 576 and 1536 admits groups of 32 and 64.
LIMITS: Mapping[tuple[str, str], Limits] = {
    ("int8wo", "torchao"): Limits(
        least_db=25.5,
        most_kl_nats=0.0069,
        least_top1=0.91,
        most_perplexity_change=0.003,
    ),
    ("int8dq", "torchao"): Limits(
        least_db=19.8,
        most_kl_nats=0.0531,
        least_top1=0.84,
        most_perplexity_change=0.052,
    ),
    ("int4wo-32", "torchao"): Limits(
        least_db=22.6,
        most_kl_nats=0.0829,
        least_top1=0.78,
        most_perplexity_change=0.111,
    ),
    ("int4wo-32-hqq", "torchao"): Limits(
        least_db=21.7,
        most_kl_nats=0.1143,
        least_top1=0.74,
        most_perplexity_change=0.109,
    ),
    ("int4wo-64", "torchao"): Limits(
        least_db=10.5,
        most_kl_nats=0.4980,
        least_top1=0.59,
        most_perplexity_change=0.455,
    ),
    ("int4wo-64-hqq", "torchao"): Limits(
        least_db=12.5,
        most_kl_nats=0.5323,
        least_top1=0.51,
        most_perplexity_change=0.523,
    ),
    ("float8wo", "torchao"): Limits(
        least_db=22.5,
        most_kl_nats=0.0516,
        least_top1=0.81,
        most_perplexity_change=0.010,
    ),
}
_HEADERS = (
    "scheme",
    "kernels",
    "dB",
    "at least",
    "KL (nats)",
    "at most",
    "top-1",
    "at least",
    "perplexity",
    "within",
)


def markdown(found: Mapping[tuple[str, str], Closeness]) -> str:
    """The table between the document's two marks."""
    cells = [
        (
            scheme,
            kernels,
            f"{found[scheme, kernels].signal_to_noise_db:.1f}",
            *_limit_cells(limits)[:1],
            f"{found[scheme, kernels].kl_nats:.4f}",
            *_limit_cells(limits)[1:2],
            f"{found[scheme, kernels].top1:.3f}",
            *_limit_cells(limits)[2:3],
            f"{found[scheme, kernels].perplexity_change:+.2%}",
            *_limit_cells(limits)[3:],
        )
        for (scheme, kernels), limits in LIMITS.items()
    ]
    return tabulate(cells, headers=_HEADERS, tablefmt="github", disable_numparse=True)


def _limit_cells(limits: Limits) -> tuple[str, str, str, str]:
    return (
        f"{limits.least_db:.1f}",
        f"{limits.most_kl_nats:.4f}",
        f"{limits.least_top1:.2f}",
        f"{limits.most_perplexity_change:.1%}",
    )


def documented_limits() -> dict[tuple[str, str], tuple[str, ...]]:
    """The limits as docs/correctness.md has them, as text."""
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text.partition(BEGIN)[2].partition(END)[0]
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ][2:]
    return {(row[0], row[1]): (row[3], row[5], row[7], row[9]) for row in rows}


def limits_as_documented() -> dict[tuple[str, str], tuple[str, ...]]:
    """The limits of the code in the document's form."""
    return {key: _limit_cells(limits) for key, limits in LIMITS.items()}
