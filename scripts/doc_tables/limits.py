"""The table of limits in docs/gate.md, from the table of metrics."""

from __future__ import annotations

from collections.abc import Sequence

from llama_perf.metrics import METRICS, LimitField
from llama_perf.rows.spec import DEVICES
from scripts.doc_tables.document import Table, github_table, place, select

PLACE = place("gate.md", "limits")


def markdown() -> str:
    """A line for each limit: its name, its meaning and its value on each device."""
    lines = [
        (
            f"`{limit.name}`",
            metric.title,
            limit.meaning,
            *(_value(limit, device) for device in DEVICES),
        )
        for metric in METRICS
        for limit in metric.limits
    ]
    headers = ("limit", "metric", "meaning", *DEVICES)
    return github_table(lines, headers)


def tables(names: Sequence[str]) -> list[Table]:
    """The table; it has no rows to choose from."""
    select(names, ())
    return [Table(place=PLACE, text=markdown())]


def _value(limit: LimitField, device: str) -> str:
    value = limit.on(device)
    return f"{value:,}" if limit.whole else f"{value * 100:g} %"
