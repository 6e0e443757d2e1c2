"""Histories made up for tests: lines of one row, night by night."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from llama_perf.results import history
from llama_perf.results.history import HistoryLine
from llama_perf.results.run import Report
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import to_json, to_line
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    measured,
    report_of,
)

KEY = ENVIRONMENT.device_key
FIRST = datetime(2026, 5, 1, 2, 17, tzinfo=UTC)
# Noise of half a percent.
STEADY = (100.0, 100.4, 99.7, 100.1, 99.5, 100.6, 99.9, 100.2)


def night(number: int) -> str:
    """When the run of a night started."""
    return (FIRST + timedelta(days=number)).isoformat()


def run(number: int = 0, *rows: RowSpec, commit: str = "", **changes: Any) -> Report:
    """The results of a night's run; `changes` are in its measurements."""
    return replace(
        report_of(*(measured(row, **changes) for row in rows or (CPU_ROW,))),
        started=night(number),
        environment=replace(ENVIRONMENT, commit=commit or f"{number:012x}"),
    )


def lines(speeds: Sequence[float], **changes: Any) -> list[HistoryLine]:
    """A line for each night, with these tok/s."""
    return [
        line
        for number, tok_s in enumerate(speeds)
        for line in history.lines_of(run(number, tok_s=tok_s, **changes))
    ]


def steady(count: int, level: float = 1.0) -> list[float]:
    """So many nights at a level of about 100 tok/s."""
    return [STEADY[number % len(STEADY)] * level for number in range(count)]


def stored(folder: Path, lines: Sequence[HistoryLine], *, key: str = KEY) -> Path:
    """The file of a device in a folder of histories."""
    path = history.path_of(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{to_line(line)}\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def written(path: Path, report: Report) -> str:
    """The path of a file with the results of a run."""
    path.write_text(to_json(report), encoding="utf-8")
    return str(path)
