"""Flat lines as CSV and JSON Lines, and those of a report, one for each row.

A line stands alone: it has the row's fields and where the run was. A figure that is
added to `Measurement` or to `METRICS` is a field of every line.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields

from llama_perf.metric import value_of
from llama_perf.metrics import METRICS
from llama_perf.results.disturbance import disturbance
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report
from llama_perf.rows.spec import RowSpec

_METRICS = {metric.field: metric for metric in METRICS}
assert len(_METRICS) == len(METRICS), "two figures have one name"
_OTHERS = [
    field.name
    for field in fields(Measurement)
    if field.type in {float, int, str, float | None, int | None, str | None}
    and field.name not in _METRICS
]
"""The fields of a measurement that hold one number or one word, and are no metric."""
_OF_RANKS = {"all_reduce": "ranks.all_reduce"}
_VERDICT = ("status", "verdict", "failed", "reason", "disturbed")
# Limits are the gate's, and several to a row.
_OF_ROW = [
    field.name for field in fields(RowSpec) if field.name not in {"name", "limits"}
]
_OF_RUN = ("started", "commit", "device_key", "device_name", "torch", "torchao", "note")
FIELDS = ("id", "name", *_VERDICT, *_METRICS, *_OTHERS, *_OF_RANKS, *_OF_ROW, *_OF_RUN)
"""The names of all fields, in the order of a line."""


def as_csv_text(names: Iterable[str], lines: Iterable[Mapping[str, object]]) -> str:
    """The lines below a header; an empty cell stands for what is not known."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(names), lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return text.getvalue()


def as_json_lines(lines: Iterable[Mapping[str, object]]) -> str:
    """An object for each line; null stands for what is not known."""
    return "".join(f"{json.dumps(line, allow_nan=False)}\n" for line in lines)


def lines(report: Report) -> Iterator[dict[str, object]]:
    """The fields of each row by name; None stands for what is not known."""
    where = report.environment
    of_run = {name: getattr(where, name, None) for name in _OF_RUN}
    of_run |= {"started": report.started, "note": report.note}
    for result, comparison in report.judged:
        now, verdict = result.measurement, getattr(comparison, "verdict", None)
        reason = result.reason if comparison is None else comparison.reason
        line: dict[str, object] = {
            "id": result.id,
            "name": result.row.name,
            "status": result.status.value,
            "verdict": getattr(verdict, "value", None),
            "failed": getattr(comparison, "failed", None),
            "reason": reason,
            "disturbed": disturbance(result, comparison) or None,
        }
        line |= {name: metric.read(now) for name, metric in _METRICS.items()}
        line |= {name: getattr(now, name, None) for name in _OTHERS}
        line |= {name: value_of(now, source) for name, source in _OF_RANKS.items()}
        line |= {name: getattr(result.row, name) for name in _OF_ROW}
        yield line | of_run
