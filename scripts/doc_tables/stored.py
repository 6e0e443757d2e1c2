"""Tables of figures that are stored: limits in docs/gate.md, a card's baseline."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from llama_perf.metric import LimitField
from llama_perf.metrics import METRICS
from llama_perf.results import baselines
from llama_perf.results.measurement import GB, Measurement
from llama_perf.rows.choices import DEVICES
from llama_perf.rows.selection import load_set
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables.document import DOCS, Key, Place, Table

_FOLDER = DOCS.parent / "baselines"
_CARD = "nvidia-h200-132sm-140gib"
_ROWS = {
    f"`{replace(row, capture=False, fused=False).id}`": row
    for row in load_set("reference")
}
_LIMITS: Mapping[Key, LimitField] = {
    (f"`{limit.name}`", metric.title, limit.meaning): limit
    for metric in METRICS
    for limit in metric.limits
}


def _draw_limit(*key: str) -> tuple[list[str], list[str]]:
    limit = _LIMITS[key]
    cells = [_shown(limit, limit.on(device)) for device in DEVICES]
    if limit.of_drawn is not None:
        drawn = _shown(limit, limit.of_drawn)
        cells = [f"{cell} ({drawn})" for cell in cells]
    return cells, []


def _shown(limit: LimitField, value: float) -> str:
    if limit.unit:
        return f"{value:g} {limit.unit}"
    return f"{value:,}" if limit.integral else f"{100 * value:g} %"


LIMITS = Table(
    place=Place("gate.md", "limits"),
    headers=("limit", "metric", "meaning", *DEVICES),
    keys=_LIMITS,
    draw=_draw_limit,
)


@cache
def _stored() -> dict[str, Measurement]:
    """What the card measured of each row, by its id."""
    stored = baselines.read(baselines.path_of(_FOLDER, _CARD))
    return {row.id: row.measurement for row in stored.rows}


def published(row: RowSpec) -> Measurement:
    """The figures of `row` in the table of torchao's former benchmark."""
    return baselines.reference(_FOLDER)[row.reference_key]


def _draw_row(name: str) -> tuple[list[str], list[str]]:
    """A row of this card's baseline compared with the published figures."""
    row = _ROWS[name]
    ours, theirs = _stored()[row.id], published(row)
    assert ours.device_bandwidth_gb_s is not None, f"{row.id} has no bandwidth"
    assert ours.check is not None, f"{row.id} is not checked"
    return [
        f"{theirs.tok_s:.2f}",
        f"{ours.tok_s:.2f}",
        f"{ours.tok_s / theirs.tok_s:.2f}x",
        f"{100 * ours.bandwidth_gb_s / ours.device_bandwidth_gb_s:.1f}",
        f"{1e3 * (ours.time_to_first_token_s or 0.0):.1f}",
        f"{theirs.peak_memory_bytes / GB:.2f}",
        f"{ours.peak_memory_bytes / GB:.2f}",
        f"{ours.check.signal_to_noise_db:.0f}",
    ], []


_HEADERS = ["row", "A100 tok/s", "H200 tok/s", "speed-up", "% of bandwidth"]
_HEADERS += ["first token ms", "A100 peak GB", "H200 peak GB", "check dB"]
PERFORMANCE = Table(
    place=Place("performance.md", "card"),
    headers=_HEADERS,
    keys=[(name,) for name in _ROWS],
    draw=_draw_row,
)
