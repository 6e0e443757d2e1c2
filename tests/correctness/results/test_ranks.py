"""Figures of a row of several ranks that are not its ranks' are refused."""

from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import RecordError
from llama_perf.results import baselines
from llama_perf.results.run import read_report
from llama_perf.strict_json import to_json
from tests.correctness.support.errors import refusal
from tests.correctness.support.record_samples import (
    RANKS,
    SHARED_ROW,
    baseline_of,
    edited,
    measured,
    report_of,
    stored_in,
)

RESULT = measured(SHARED_ROW, ranks=RANKS)
EDITS: list[tuple[dict[str, Any], str]] = [
    ({"ranks": None}, "ranks: those of 1, and its row has 2"),
    (
        {"peak_memory_bytes": 950_000_000},
        "peak_memory_bytes: 950000000 is not that of its ranks, 1000000000",
    ),
    (
        {"ranks.each.0.model_size_bytes": 200_000_000},
        "model_size_bytes: 500000000 is not that of its ranks, 450000000",
    ),
    (
        {"ranks.each.1.device_bandwidth_gb_s": 8.0},
        "device_bandwidth_gb_s: 20.0 is not that of its ranks, 18.0",
    ),
    (
        {"ranks.each.1.sample_ns": [1_940_000_000, 2_040_000_000]},
        "sample_ns: [1950000000, 2050000000] are not those of the slowest rank,"
        " [1950000000, 2040000000]",
    ),
    (
        {"ranks.each.0.sample_ns": [1_930_000_000, 2_020_000_000, 1_000_000_000]},
        "ranks.each.0.sample_ns: 3 samples, and its row has 2",
    ),
    ({"ranks.all_reduce_bytes": 510}, "ranks.all_reduce_bytes: 510 in 4 sums"),
    ({"ranks.all_reduces": 0}, "ranks.all_reduce_bytes: 512 in 0 sums"),
]


@pytest.mark.parametrize(("edit", "words"), EDITS, ids=str)
def test_results_and_baselines_that_were_edited(
    tmp_path: Path, edit: dict[str, Any], words: str
) -> None:
    path = tmp_path / "run.json"
    path.write_text(to_json(report_of(RESULT)), encoding="utf-8")
    assert read_report(path) == report_of(RESULT)
    fields = {f"results.0.measurement.{name}": value for name, value in edit.items()}
    edited(path, fields)
    assert refusal(read_report, path, error=RecordError) == (
        f"{path}: results.0.measurement.{words}"
    )
    stored = stored_in(tmp_path, baseline_of(RESULT))
    assert baselines.read(stored) == baseline_of(RESULT)
    fields = {f"rows.0.measurement.{name}": value for name, value in edit.items()}
    edited(stored, fields)
    assert refusal(baselines.read, stored, error=RecordError) == (
        f"{stored}: rows.0.measurement.{words}"
    )


def test_a_row_of_one_rank_has_no_ranks(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(to_json(report_of(measured(ranks=RANKS))), encoding="utf-8")
    assert refusal(read_report, path, error=RecordError) == (
        f"{path}: results.0.measurement.ranks: those of 2, and its row has 1"
    )
