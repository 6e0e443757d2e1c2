"""The table of docs/performance.md: a card's baseline and the published figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llama_perf.gate import baselines
from llama_perf.results.measurement import GB, Measurement
from llama_perf.rows.selection import load_set
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables.document import (
    DOCS,
    Table,
    github_table,
    place,
    select,
    text_between,
)

PLACE = place("performance.md", "card")
FOLDER = DOCS.parent / "baselines"
CARD = "nvidia-h200-132sm-140gib"
_HEADERS = (
    "row",
    "A100 tok/s",
    "H200 tok/s",
    "speed-up",
    "% of bandwidth",
    "first token ms",
    "A100 peak GB",
    "H200 peak GB",
    "check dB",
)


def tables(names: Sequence[str]) -> list[Table]:
    """The table; it has no rows to choose from."""
    select(names, ())
    return [Table(place=PLACE, text=markdown())]


def markdown() -> str:
    """Every row of the set `reference`, in its order."""
    stored = baselines.read(baselines.path_of(FOLDER, CARD))
    here = {row.id: row.measurement for row in stored.rows}
    there = baselines.reference(FOLDER)
    cells = [
        _cells(row, here[row.id], there[row.reference_key])
        for row in load_set("reference")
    ]
    return github_table(cells, _HEADERS)


def _cells(row: RowSpec, here: Measurement, there: Measurement) -> tuple[str, ...]:
    assert here.device_bandwidth_gb_s is not None, f"{row.id} has no bandwidth"
    assert here.check is not None, f"{row.id} is not checked"
    first_token_s = here.time_to_first_token_s or 0.0
    return (
        f"`{replace(row, capture=False, fused=False).id}`",
        f"{there.tok_s:.2f}",
        f"{here.tok_s:.2f}",
        f"{here.tok_s / there.tok_s:.2f}x",
        f"{100 * here.bandwidth_gb_s / here.device_bandwidth_gb_s:.1f}",
        f"{1e3 * first_token_s:.1f}",
        f"{there.peak_memory_bytes / GB:.2f}",
        f"{here.peak_memory_bytes / GB:.2f}",
        f"{here.check.signal_to_noise_db:.0f}",
    )


def documented() -> str:
    """The table as docs/performance.md has it."""
    return text_between(*PLACE)
