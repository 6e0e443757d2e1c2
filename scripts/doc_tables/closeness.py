"""Limits of closeness for every scheme, and the table of docs/correctness.md.

A scheme that only rounds weights has the same figures on every processor: `redraws.py`
says why. Its limit is what was measured (the table beside it in the docs) with a margin
for other versions of libraries: 1.5 dB and half as much KL divergence again, and for
top-1 agreement and perplexity two standard errors over the n tokens compared. Those
are sqrt(p (1 - p) / n) for an agreement of p, and sqrt(2 KL / n) for the perplexity:
the log of two near distributions' ratio has a variance of twice their divergence. Where
the perplexity grows a hundredfold, as from pruning, they are errors of its logarithm,
not added.

A scheme that rounds activations draws its errors anew on each processor. Its limit is
the mean of many such draws, and `DEVIATIONS` standard deviations of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tabulate import tabulate

from scripts.doc_tables.document import place, rows_between
from scripts.doc_tables.figures import Closeness
from scripts.doc_tables.redraws import DEVIATIONS, Redraws

PLACE = place("correctness.md", "closeness")
REDRAWS_PLACE = place("correctness.md", "redraws")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The least or the most that a scheme may show; units as in `Closeness`.

    `length`: how many tokens of the fixed text are compared; all of them if None.
    """

    least_db: float
    most_kl_nats: float
    least_top1: float
    most_perplexity_change: float
    length: int | None = None

    @classmethod
    def over(cls, drawn: Redraws) -> Limits:
        """Those that no processor's draw breaks, rounded away from the mean."""

        def beyond(figure: tuple[float, float], sign: int, places: int) -> float:
            mean, deviation = figure
            edge = mean + sign * DEVIATIONS * deviation
            # A rounding of the float alone is no step further.
            steps = round(edge * 10**places * sign, 6)
            return float(sign * math.ceil(steps) / 10**places)

        mean, deviation = drawn.perplexity_change
        return cls(
            least_db=beyond(drawn.signal_to_noise_db, -1, 1),
            most_kl_nats=beyond(drawn.kl_nats, 1, 4),
            least_top1=beyond(drawn.top1, -1, 2),
            most_perplexity_change=beyond((abs(mean), deviation), 1, 3),
        )

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


# torchao's int4 takes a CPU as long for each token of a text as for a step of decoding;
# its native twins are compared on the same tokens.
_START = 96

# Mean and standard deviation, as docs/correctness.md has them.
REDRAWN: Mapping[tuple[str, str], Redraws] = {
    ("int8dq", "torchao"): Redraws(
        signal_to_noise_db=(21.46, 0.28),
        kl_nats=(0.0358, 0.0012),
        top1=(0.868, 0.012),
        perplexity_change=(0.039, 0.008),
    ),
    ("int8dq", "native"): Redraws(
        signal_to_noise_db=(21.60, 0.36),
        kl_nats=(0.0400, 0.0025),
        top1=(0.871, 0.007),
        perplexity_change=(0.031, 0.010),
    ),
    ("float8dq-row", "native"): Redraws(
        signal_to_noise_db=(21.34, 0.18),
        kl_nats=(0.0469, 0.0014),
        top1=(0.834, 0.011),
        perplexity_change=(0.013, 0.007),
    ),
    ("float8dq-tensor", "native"): Redraws(
        signal_to_noise_db=(19.20, 0.15),
        kl_nats=(0.0561, 0.0015),
        top1=(0.816, 0.006),
        perplexity_change=(0.060, 0.010),
    ),
    ("autoquant", "native"): Redraws(
        signal_to_noise_db=(24.01, 0.23),
        kl_nats=(0.0186, 0.0004),
        top1=(0.905, 0.010),
        perplexity_change=(0.009, 0.006),
    ),
    ("autoquant-int4", "native"): Redraws(
        signal_to_noise_db=(19.99, 0.06),
        kl_nats=(0.0456, 0.0003),
        top1=(0.863, 0.004),
        perplexity_change=(0.045, 0.003),
    ),
}
# (scheme, kernels); SmolLM2's K of 576 and 1536 admits groups of 32 and 64.
LIMITS: Mapping[tuple[str, str], Limits] = {
    ("int8wo", "torchao"): Limits(
        least_db=25.5,
        most_kl_nats=0.0069,
        least_top1=0.92,
        most_perplexity_change=0.009,
    ),
    ("int8dq", "torchao"): Limits.over(REDRAWN["int8dq", "torchao"]),
    ("int4wo-32", "torchao"): Limits(
        least_db=20.6,
        most_kl_nats=0.0819,
        least_top1=0.72,
        most_perplexity_change=0.098,
        length=_START,
    ),
    ("int4wo-32-hqq", "torchao"): Limits(
        least_db=20.0,
        most_kl_nats=0.1130,
        least_top1=0.65,
        most_perplexity_change=0.152,
        length=_START,
    ),
    ("int4wo-64", "torchao"): Limits(
        least_db=9.9,
        most_kl_nats=0.5457,
        least_top1=0.46,
        most_perplexity_change=0.465,
        length=_START,
    ),
    ("int4wo-64-hqq", "torchao"): Limits(
        least_db=10.2,
        most_kl_nats=0.5701,
        least_top1=0.44,
        most_perplexity_change=0.694,
        length=_START,
    ),
    ("float8wo", "torchao"): Limits(
        least_db=22.5,
        most_kl_nats=0.0516,
        least_top1=0.81,
        most_perplexity_change=0.030,
    ),
    ("int8wo", "native"): Limits(
        least_db=27.5,
        most_kl_nats=0.0062,
        least_top1=0.91,
        most_perplexity_change=0.011,
    ),
    ("int8dq", "native"): Limits.over(REDRAWN["int8dq", "native"]),
    ("int4wo-32", "native"): Limits(
        least_db=20.5,
        most_kl_nats=0.0795,
        least_top1=0.73,
        most_perplexity_change=0.117,
        length=_START,
    ),
    ("int4wo-32-hqq", "native"): Limits(
        least_db=19.9,
        most_kl_nats=0.1142,
        least_top1=0.65,
        most_perplexity_change=0.154,
        length=_START,
    ),
    ("int4wo-64", "native"): Limits(
        least_db=9.6,
        most_kl_nats=0.4775,
        least_top1=0.53,
        most_perplexity_change=0.433,
        length=_START,
    ),
    ("int4wo-64-hqq", "native"): Limits(
        least_db=10.2,
        most_kl_nats=0.5310,
        least_top1=0.48,
        most_perplexity_change=0.633,
        length=_START,
    ),
    ("uintx-4-64", "native"): Limits(
        least_db=9.0,
        most_kl_nats=0.5838,
        least_top1=0.54,
        most_perplexity_change=0.479,
    ),
    ("uintx-5-32", "native"): Limits(
        least_db=16.5,
        most_kl_nats=0.1018,
        least_top1=0.80,
        most_perplexity_change=0.104,
    ),
    ("uintx-2-8", "native"): Limits(
        least_db=3.9,
        most_kl_nats=3.6948,
        least_top1=0.17,
        most_perplexity_change=10.317,
    ),
    ("float8wo", "native"): Limits(
        least_db=22.5,
        most_kl_nats=0.0516,
        least_top1=0.81,
        most_perplexity_change=0.030,
    ),
    ("float8dq-row", "native"): Limits.over(REDRAWN["float8dq-row", "native"]),
    ("float8dq-tensor", "native"): Limits.over(REDRAWN["float8dq-tensor", "native"]),
    ("fp6", "native"): Limits(
        least_db=14.4,
        most_kl_nats=0.1978,
        least_top1=0.70,
        most_perplexity_change=0.204,
    ),
    ("sparse-marlin", "native"): Limits(
        least_db=-0.4,
        most_kl_nats=7.3103,
        least_top1=0.02,
        most_perplexity_change=163.8,
    ),
    ("autoquant", "native"): Limits.over(REDRAWN["autoquant", "native"]),
    ("autoquant-int4", "native"): Limits.over(REDRAWN["autoquant-int4", "native"]),
}
# torchao's own hqq goes over whole weights, two minutes for this model.
SLOW = {("int4wo-32-hqq", "torchao"), ("int4wo-64-hqq", "torchao")}
# Beside the pruned model instead, since pruning without training hurts by itself.
PRUNED_LIMITS: Mapping[tuple[str, str], Limits] = {
    ("sparse-marlin", "native"): Limits(
        least_db=5.7,
        most_kl_nats=1.8856,
        least_top1=0.09,
        most_perplexity_change=0.400,
    ),
}
# (scheme, kernels, the model they are compared with): every row of the table.
Key: TypeAlias = tuple[str, str, str]
ROWS: Mapping[Key, Limits] = {
    (*key, beside): limits
    for beside, table in (("unquantized", LIMITS), ("pruned", PRUNED_LIMITS))
    for key, limits in table.items()
}
# Each figure and its limit.
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
_HEADERS = ("scheme", "kernels", "beside", "tokens", *FIGURES)


def markdown(found: Mapping[Key, Closeness]) -> str:
    """The table between the document's two marks; rows not `found` as they are."""
    documented = _documented_rows()
    cells = [
        _cells(key, found[key], limits) if key in found else documented[key]
        for key, limits in ROWS.items()
    ]
    return tabulate(cells, headers=_HEADERS, tablefmt="github", disable_numparse=True)


def _cells(key: Key, found: Closeness, limits: Limits) -> list[str]:
    figures = (
        f"{found.signal_to_noise_db:.1f}",
        f"{found.kl_nats:.4f}",
        f"{found.top1:.3f}",
        f"{found.perplexity_change:+.2%}",
    )
    pairs = zip(figures, _limit_cells(limits), strict=True)
    return [*key, _tokens_cell(limits), *(cell for pair in pairs for cell in pair)]


def _tokens_cell(limits: Limits) -> str:
    return "all" if limits.length is None else f"first {limits.length}"


def _limit_cells(limits: Limits) -> tuple[str, str, str, str]:
    return (
        f"{limits.least_db:.1f}",
        f"{limits.most_kl_nats:.4f}",
        f"{limits.least_top1:.2f}",
        f"{limits.most_perplexity_change:.1%}",
    )


def _documented_rows() -> dict[Key, list[str]]:
    rows = rows_between(*PLACE)
    return {(row[0], row[1], row[2]): row for row in rows}


def documented_limits() -> dict[Key, tuple[str, ...]]:
    """The limits as docs/correctness.md has them, as text."""
    return {key: (row[3], *row[5::2]) for key, row in _documented_rows().items()}


def limits_as_documented() -> dict[Key, tuple[str, ...]]:
    """The limits of the code in the document's form."""
    return {
        key: (_tokens_cell(limits), *_limit_cells(limits))
        for key, limits in ROWS.items()
    }


def redraws_markdown(found: Mapping[tuple[str, str], Redraws]) -> str:
    """The table of redraws; schemes not `found` as the limits have them."""
    cells = [
        (*key, *_redraws_cells(found.get(key, drawn))) for key, drawn in REDRAWN.items()
    ]
    headers = ("scheme", "kernels", "dB", "KL (nats)", "top-1", "perplexity")
    return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True)


def _redraws_cells(drawn: Redraws) -> tuple[str, str, str, str]:
    db, kl, top1 = drawn.signal_to_noise_db, drawn.kl_nats, drawn.top1
    mean, deviation = drawn.perplexity_change
    return (
        f"{db[0]:.2f} ({db[1]:.2f})",
        f"{kl[0]:.4f} ({kl[1]:.4f})",
        f"{top1[0]:.3f} ({top1[1]:.3f})",
        f"{mean:+.1%} ({deviation:.1%})",
    )
