"""The table of limits in docs/gate.md, from the table of metrics."""

from __future__ import annotations

from tabulate import tabulate

from llama_perf.metrics import METRICS, LimitField
from llama_perf.rows.spec import DEVICES
from scripts.doc_tables.document import place

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
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def _value(limit: LimitField, device: str) -> str:
    value = limit.on(device)
    return f"{value:,}" if limit.whole else f"{value * 100:g} %"
