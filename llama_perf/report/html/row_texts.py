"""What the charts of one row show, in words and numbers, for those who do not see them.

They are made of the values that the charts draw.
"""

from collections.abc import Mapping, Sequence

from llama_perf.report.html.chart_values import Datum
from llama_perf.report.html.row_data import BEFORE, MEMORY, NOW, SAMPLES, STEP, TOKENS

_MOST_PARTS = 4


def row_texts(data: Mapping[str, Sequence[Datum]]) -> dict[str, str]:
    """A text for each chart by its name; empty for one that has no values."""
    return {
        SAMPLES: _samples(data[SAMPLES]),
        STEP: _parts(data[STEP], "A step", "ms"),
        MEMORY: _parts(data[MEMORY], "The peak", "GB"),
        TOKENS: _tokens(data[TOKENS]),
    }


def _samples(data: Sequence[Datum]) -> str:
    texts = []
    for group in dict.fromkeys(one["group"] for one in data):
        rates = [one["tok_s"] for one in data if one["group"] == group]
        # The median comes last.
        *single, middle = rates
        texts.append(
            f"{group}: {len(single)}, median {middle:g} tok/s, from {min(single):g} to"
            f" {max(single):g}."
        )
    return " ".join(texts)


def _parts(data: Sequence[Datum], subject: str, unit: str) -> str:
    sums = {}
    for when in (NOW, BEFORE):
        of_side = [one for one in data if one["when"] == when]
        parts = [one["value"] for one in of_side if "part" in one]
        known = [one["measured"] for one in of_side if "measured" in one]
        if parts:
            sums[when] = known[0] if known else sum(parts)
    if NOW not in sums:
        return ""
    before = {
        one["part"]: one["value"]
        for one in data
        if "part" in one and one["when"] == BEFORE
    }
    now = [one for one in data if "part" in one and one["when"] == NOW]
    now.sort(key=lambda one: -one["value"])
    named = [
        f"{one['part'][2:]} {one['value']:g}{_was(before.get(one['part']))}"
        for one in now[:_MOST_PARTS]
    ]
    whole = f"{subject}: {sums[NOW]:.4g} {unit}{_was(sums.get(BEFORE))}."
    return f"{whole} Its largest parts: {', '.join(named)}."


def _was(value: float | None) -> str:
    return "" if value is None else f" (baseline {value:.4g})"


def _tokens(data: Sequence[Datum]) -> str:
    named = [
        f"{one['percent']} % took at most {one['ms']:g} ms"
        for one in data
        if one["percent"] in {50, 90, 99}
    ]
    return f"Of the tokens {', '.join(named)}." if named else ""
