import math
import os
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_perf.errors import RecordError, WriteError
from llama_perf.results import baselines
from llama_perf.results.baselines import Baseline
from llama_perf.results.run import RowResult, Status
from llama_perf.strict_json import to_json
from tests.correctness.support.errors import refusal
from tests.correctness.support.record_samples import (
    CLOSENESS,
    CPU_ROW,
    ENVIRONMENT,
    INT8_CPU,
    OTHER,
    baseline_of,
    close,
    edited,
    measured,
    stored_in,
    unmeasured,
)


def record(
    folder: Path, *results: RowResult, fresh: bool = False, **changes: Any
) -> Baseline:
    environment = replace(ENVIRONMENT, **changes)
    path, baseline = baselines.record_rows(
        folder, environment=environment, results=results, fresh=fresh
    )
    assert baselines.read(path) == baseline
    return baseline


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return stored_in(tmp_path, baseline_of(measured()))


def file_refusal(path: Path) -> str:
    message = refusal(baselines.read, path, error=RecordError)
    assert str(path) in message
    return message


def test_the_time_to_compile_is_that_of_the_process_that_compiled(
    tmp_path: Path,
) -> None:
    rates = ((10.0, 9.0), (12.0, None), (11.0, None))
    results = (measured(tok_s=rate, compile_s=seconds) for rate, seconds in rates)
    (row,) = record(tmp_path, *results).rows
    assert (row.measurement.tok_s, row.measurement.compile_s) == (11.0, 9.0)


def test_one_process_that_measured_closeness_is_enough(tmp_path: Path) -> None:
    rates = ((10.0, None), (12.0, CLOSENESS), (11.0, None))
    results = (measured(tok_s=rate, closeness=one) for rate, one in rates)
    (row,) = record(tmp_path, *results).rows
    assert (row.measurement.tok_s, row.measurement.closeness) == (11.0, CLOSENESS)


def test_a_row_recorded_without_closeness_keeps_the_one_it_had(tmp_path: Path) -> None:
    for now, kept in (
        (close(), 12.0),
        (measured(INT8_CPU, tok_s=120.0), 12.0),
        (close(db=13.0), 13.0),
        # It was that of other weights.
        (measured(INT8_CPU, weights="gguf:a"), None),
    ):
        (row,) = record(tmp_path, now).rows
        closeness = row.measurement.closeness
        assert (None if closeness is None else closeness.db) == kept
    # Nor does it stay where the row was another one under its id.
    old = baseline_of(close())
    old = replace(old, rows=(replace(old.rows[0], fingerprint="0" * 16),))
    again = [measured(INT8_CPU)]
    (row,) = baselines.updated(old, environment=ENVIRONMENT, results=again).rows
    assert row.measurement.closeness is None


def test_what_is_recorded_is_found(tmp_path: Path) -> None:
    baseline = record(tmp_path, measured(), measured(OTHER))
    path = tmp_path / "cpu-some-2c" / "baseline.json"
    assert baselines.find(tmp_path, "cpu-some-2c") == (path, baseline)
    assert baselines.keys(tmp_path) == ["cpu-some-2c"]
    assert baselines.find(tmp_path, "another") is None


def test_a_baseline_reads_well_in_a_diff(stored: Path) -> None:
    lines = stored.read_text(encoding="utf-8").splitlines()
    assert '        "tok_s": 100.0,' in lines
    assert '        "sample_ns": [ 1950000000, 2050000000 ],' in lines
    assert max(map(len, lines)) < 100


SEVERAL = [measured(tok_s=rate) for rate in (100.0, 104.0, 102.0)]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("surprise", 1, "surprise: unknown field"),
        ("rows.0.measurement.tok_s", "fast", "rows.0.measurement.tok_s: "),
        *(
            ("rows.0.measurement.tok_s", number, "rows.0.measurement.tok_s: ")
            for number in (math.nan, math.inf, -math.inf, "1e999")
        ),
        ("rows.0.measurement.tok_s", -1.0, "tok_s: -1.0 is not allowed"),
        ("rows.0.measurement.tok_s", 0.0, "tok_s: 0.0 is not allowed"),
        ("rows.0.measurement.peak_memory_bytes", 1.5, "peak_memory_bytes: "),
        ("rows.0.measurement.peak_memory_bytes", -1, "peak_memory_bytes: -1 is not"),
        ("rows.0.row.quantization", "int5wo", "quantization: 'int5wo' is not allowed"),
        ("environment.torch", 2.13, "environment.torch: "),
        ("schema_version", 3, "schema_version: "),
        ("kind", "a poem", "kind: "),
        ("rows", {}, "rows: "),
        ("rows.1.id", CPU_ROW.id, f"rows.1.id: {CPU_ROW.id!r} is there twice"),
        ("rows.0.between_process_deviation", 0.5, "between_process_deviation: 0.5 is"),
        ("rows.0.between_process_deviation", None, "_deviation: none is not allowed"),
        ("rows.0.processes", None, "that of 1 process is none"),
        ("rows.0.processes", [], "rows.0.processes: 0 of them; allowed: at least 2"),
        ("rows.0.processes.1.tok_s", "fast", "rows.0.processes.1.tok_s: "),
        ("rows.0.processes.1.tok_s", 0.0, "processes.1: tok_s: 0.0 is not allowed"),
        ("rows.0.processes.2.sample_ns", [1, None], "processes.2.sample_ns.1: "),
        ("rows.0.processes.2.surprise", 1, "rows.0.processes.2.surprise: unknown fie"),
    ],
)
def test_a_wrong_field_is_named(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    record(tmp_path, *SEVERAL, measured(OTHER))
    path = baselines.path_of(tmp_path, ENVIRONMENT.device_key)
    edited(path, {field: value})
    assert message in file_refusal(path)


def test_a_row_of_several_processes_stores_the_main_figures_of_each(
    tmp_path: Path,
) -> None:
    several, single = record(tmp_path, *SEVERAL, measured(OTHER)).rows
    assert several.processes is not None
    assert [process.tok_s for process in several.processes] == [100.0, 104.0, 102.0]
    assert several.measurement.tok_s == 102.0
    logs = [math.log(rate) for rate in (100.0, 104.0, 102.0)]
    assert several.between_process_deviation == pytest.approx(stdev(logs))
    assert (single.processes, single.between_process_deviation) == (None, None)


def test_a_file_of_version_1_is_read_and_written_anew(stored: Path) -> None:
    edited(stored, {"schema_version": 1})
    old = baselines.read(stored)
    assert old.schema_version == 1
    merged = record(stored.parents[1], measured(OTHER))
    assert merged.schema_version == 2
    assert merged.rows[0].measurement == old.rows[0].measurement


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_reads_as_a_baseline(
    stored: Path, data: st.DataObject
) -> None:
    intact = to_json(baseline_of(measured())).encode()
    cut = data.draw(st.integers(0, len(intact) - 2))
    junk = data.draw(st.binary(max_size=4))
    stored.write_bytes(intact[:cut] + junk)
    file_refusal(stored)
    flipped = bytearray(intact)
    flipped[cut] ^= 1 << data.draw(st.integers(0, 7))
    stored.write_bytes(flipped)
    try:
        baselines.read(stored)
    except RecordError:
        file_refusal(stored)


def test_rows_that_were_not_run_stay_with_their_environment(tmp_path: Path) -> None:
    record(tmp_path, measured(), measured(OTHER))
    refused = unmeasured(Status.NOT_RUN, "no compiler", OTHER)
    merged = record(tmp_path, measured(tok_s=120.0), refused, torch="2.14.0")
    new, older = merged.rows
    assert (new.measurement.tok_s, new.environment) == (120.0, None)
    assert (older.id, older.environment) == (OTHER.id, ENVIRONMENT)
    assert older.recorded is not None
    again = record(tmp_path, measured(tok_s=130.0), torch="2.14.0")
    assert again.rows[1] == older
    fresh = record(tmp_path, measured(OTHER), fresh=True)
    assert [row.id for row in fresh.rows] == [OTHER.id]


NO_MEMORY = unmeasured(Status.NOT_RUN, "no memory")


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([measured(), NO_MEMORY, measured()], "in 2 of 3 processes: no memory"),
        ([measured(), measured(weights="gguf:a")], "other weights: gguf:a, synthetic"),
        ([measured(), unmeasured(Status.INVALID, "it broke")], "is INVALID: it broke"),
        ([measured(), unmeasured(Status.INVALID, "so", OTHER)], f"{OTHER.id} is INVAL"),
        ([measured(injected_slowdown=0.5)], "injected slowdown"),
        ([NO_MEMORY], "no row was measured"),
        ([], "no row was measured"),
    ],
)
def test_results_that_are_no_baseline_are_not_stored(
    stored: Path, results: list[RowResult], message: str
) -> None:
    before = stored.read_bytes()
    empty = stored.parent / "empty"
    for folder in (stored.parents[1], empty):
        for fresh in (False, True):
            with pytest.raises(RecordError, match=message):
                record(folder, *results, fresh=fresh)
    assert stored.read_bytes() == before
    assert not empty.exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = stored.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="cannot be written: No space left"):
        record(stored.parents[1], measured(OTHER))
    assert stored.read_bytes() == before
    assert list(stored.parent.iterdir()) == [stored]
