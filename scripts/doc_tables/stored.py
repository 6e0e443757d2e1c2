"""Tables of figures that are stored: limits in docs/gate.md, a card's baseline."""

from collections.abc import Sequence
from dataclasses import replace

from llama_perf.metrics import METRICS, LimitField
from llama_perf.results import baselines
from llama_perf.results.measurement import GB
from llama_perf.rows.selection import load_set
from llama_perf.rows.spec import DEVICES, RowSpec
from scripts.doc_tables.document import DOCS, Table, github_table, place, select

_FOLDER = DOCS.parent / "baselines"
_CARD = "nvidia-h200-132sm-140gib"


def limits(names: Sequence[str]) -> list[Table]:
    """A line for each limit: its name, its meaning and its value on each device."""
    select(names, ())
    rows = [
        (f"`{limit.name}`", metric.title, limit.meaning, *_values(limit))
        for metric in METRICS
        for limit in metric.limits
    ]
    text = github_table(rows, ("limit", "metric", "meaning", *DEVICES))
    return [Table(place=place("gate.md", "limits"), text=text)]


def _values(limit: LimitField) -> list[str]:
    values = map(limit.on, DEVICES)
    return [
        f"{value:,}" if limit.integral else f"{100 * value:g} %" for value in values
    ]


def performance(names: Sequence[str]) -> list[Table]:
    """Every row of the set `reference`: this card's baseline, the published figures."""
    select(names, ())
    stored = baselines.read(baselines.path_of(_FOLDER, _CARD))
    here = {row.id: row.measurement for row in stored.rows}
    there = baselines.reference(_FOLDER)

    def cells(row: RowSpec) -> tuple[str, ...]:
        ours, published = here[row.id], there[row.reference_key]
        assert ours.device_bandwidth_gb_s is not None, f"{row.id} has no bandwidth"
        assert ours.check is not None, f"{row.id} is not checked"
        return (
            f"`{replace(row, capture=False, fused=False).id}`",
            f"{published.tok_s:.2f}",
            f"{ours.tok_s:.2f}",
            f"{ours.tok_s / published.tok_s:.2f}x",
            f"{100 * ours.bandwidth_gb_s / ours.device_bandwidth_gb_s:.1f}",
            f"{1e3 * (ours.time_to_first_token_s or 0.0):.1f}",
            f"{published.peak_memory_bytes / GB:.2f}",
            f"{ours.peak_memory_bytes / GB:.2f}",
            f"{ours.check.signal_to_noise_db:.0f}",
        )

    headers = ["row", "A100 tok/s", "H200 tok/s", "speed-up", "% of bandwidth"]
    headers += ["first token ms", "A100 peak GB", "H200 peak GB", "check dB"]
    text = github_table(map(cells, load_set("reference")), headers)
    return [Table(place=place("performance.md", "card"), text=text)]
