"""What one device measured before: records, and `baselines/<device key>/baseline.json`.

Knows the files, and nothing of the meaning of their figures.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import variance
from typing import Literal

from llama_perf.errors import RecordError, check_positive
from llama_perf.files import CHECKOUT, is_checkout, write_atomically
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Environment, Report, RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import read_json, record, to_json
from llama_perf.words import counted, shown

FILE_NAME = "baseline.json"
REFERENCE_KEY = "a100-reference"
# Variances of log speeds: no timing repeats to a millionth.
_MIN_VARIANCE = 1e-12


@record
class ProcessSamples:
    """The figures of a row in one fresh process, of which a baseline has several."""

    tok_s: float
    peak_memory_bytes: int
    sample_ns: tuple[int, ...]
    device_bandwidth_gb_s: float | None = None

    def __post_init__(self) -> None:
        check_positive("tok_s", self.tok_s)


@record
class BaselineRow:
    """One row of a baseline; the fingerprint is that of the row as it was run.

    `processes` has all that ran the row, in their order, if there were several.
    `measurement` is then that of the process with the median speed, with the time to
    compile of those that compiled anew, and
    `between_process_deviation` the standard deviation of their logarithmic speeds.
    `recorded` and `environment` are those of the baseline, unless the row is older than
    the rest of it.
    """

    id: str
    fingerprint: str
    row: RowSpec
    measurement: Measurement
    between_process_deviation: float | None = None
    processes: tuple[ProcessSamples, ...] | None = None
    recorded: str | None = None
    environment: Environment | None = None

    @property
    def samples(self) -> Sequence[ProcessSamples | Measurement]:
        """The figures of each of its processes, at least one."""
        return self.processes or (self.measurement,)


@record
class Baseline:
    """The rows of one device, stored in `baselines/<device key>/baseline.json`.

    In version 1 each row has one process.
    """

    kind: Literal["llama-perf baseline"] = "llama-perf baseline"
    schema_version: Literal[1, 2] = 2
    recorded: str
    note: str | None = None
    environment: Environment
    rows: tuple[BaselineRow, ...]


def baselines_folder() -> Path:
    """`baselines/` of this checkout, or else of the working directory."""
    return (CHECKOUT if is_checkout() else Path.cwd()) / "baselines"


def path_of(folder: Path, device_key: str) -> Path:
    """The path of a device's baseline."""
    return folder / device_key / FILE_NAME


def read(path: Path) -> Baseline:
    """Read a baseline; raises RecordError that names the file and the dotted field."""
    baseline = read_json(Baseline, path)
    ids: set[str] = set()
    for number, row in enumerate(baseline.rows):
        if row.id in ids:
            raise RecordError(f"{path}: rows.{number}.id: {row.id!r} is there twice")
        ids.add(row.id)
        _check_processes(row, where=f"{path}: rows.{number}")
    return baseline


def _check_processes(row: BaselineRow, *, where: str) -> None:
    """Raise RecordError unless a row's deviation is that of its processes."""
    if row.processes is not None and len(row.processes) < 2:
        raise RecordError(
            f"{where}.processes: {len(row.processes)} of them; allowed: at least 2, or"
            " none for a row that one process measured"
        )
    stored, deviation = row.between_process_deviation, _deviation(row.samples)
    close = stored and deviation and math.isclose(stored, deviation, rel_tol=1e-6)
    if stored != deviation and not close:
        raise RecordError(
            f"{where}.between_process_deviation: {shown(stored)} is not allowed; that"
            f" of {counted(len(row.samples), 'process')} is {shown(deviation)}"
        )


def log_deviation(log_rates: Sequence[float]) -> float:
    """The sample deviation of one log speed for each process, at least two."""
    assert len(log_rates) > 1, "one process has no deviation"
    return math.sqrt(max(variance(log_rates), _MIN_VARIANCE))


def _deviation(processes: Sequence[Measurement | ProcessSamples]) -> float | None:
    if len(processes) < 2:
        return None
    return log_deviation([math.log(process.tok_s) for process in processes])


def find(folder: Path, device_key: str) -> tuple[Path, Baseline] | None:
    """The baseline of a device, or None if none is recorded."""
    path = path_of(folder, device_key)
    return (path, read(path)) if path.exists() else None


def keys(folder: Path) -> list[str]:
    """The devices that have a baseline."""
    return sorted(path.parent.name for path in folder.glob(f"*/{FILE_NAME}"))


def record_rows(
    folder: Path,
    *,
    environment: Environment,
    results: Iterable[RowResult],
    fresh: bool = False,
) -> tuple[Path, Baseline]:
    """Store the measured rows in the device's baseline.

    `results` has one result for each process that ran a row. Other rows stay with the
    environment they were recorded in, unless `fresh` starts the file anew. Raises
    RecordError, and stores nothing, if a row ended INVALID, had an injected slowdown or
    was measured in only some of its processes, or if no row was measured.
    """
    rows = _measured_rows(results)
    path = path_of(folder, environment.device_key)
    if path.exists() and not fresh:
        old, measured = read(path), {row.id for row in rows}
        for row in old.rows:
            if row.id not in measured:
                where = row.environment or old.environment
                row = replace(row, recorded=row.recorded or old.recorded)
                other = None if where == environment else where
                rows.append(replace(row, environment=other))
    baseline = Baseline(
        recorded=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment,
        rows=tuple(rows),
    )
    write_atomically(path, to_json(baseline))
    return path, baseline


def _measured_rows(results: Iterable[RowResult]) -> list[BaselineRow]:
    by_row: dict[str, list[RowResult]] = {}
    for result in results:
        if result.status is Status.INVALID:
            raise RecordError(f"baseline: {result.id} is INVALID: {result.reason}")
        if result.measurement is not None and result.measurement.injected_slowdown:
            raise RecordError(f"baseline: {result.id} ran with an injected slowdown")
        by_row.setdefault(result.id, []).append(result)
    rows = []
    for row_id, processes in by_row.items():
        measured = [one.measurement for one in processes if one.measurement]
        if measured and len(measured) < len(processes):
            reason = next(result.reason for result in processes if result.reason)
            raise RecordError(
                f"baseline: {row_id} was measured in {len(measured)} of"
                f" {counted(len(processes), 'process')}: {reason}"
            )
        if len(weights := sorted({one.weights for one in measured})) > 1:
            raise RecordError(
                f"baseline: the processes of {row_id} had other weights:"
                f" {', '.join(weights)}"
            )
        if measured:
            rows.append(baseline_row(processes[0].row, *measured))
    if not rows:
        raise RecordError("baseline: no row was measured, so there is none to record")
    return rows


def baseline_row(row: RowSpec, *measurements: Measurement) -> BaselineRow:
    """A row as it is stored, from one measurement for each of its processes."""
    by_speed = sorted(measurements, key=lambda measurement: measurement.tok_s)
    names = ProcessSamples.__dataclass_fields__
    median_speed = by_speed[(len(by_speed) - 1) // 2]
    compiled = [one.compile_s for one in measurements if one.compile_s is not None]
    processes = tuple(
        ProcessSamples(**{name: getattr(measurement, name) for name in names})
        for measurement in measurements
    )
    return BaselineRow(
        id=row.id,
        fingerprint=row.fingerprint,
        row=row,
        measurement=replace(median_speed, compile_s=min(compiled, default=None)),
        between_process_deviation=_deviation(processes),
        processes=processes if len(processes) > 1 else None,
    )


def of_report(report: Report) -> Baseline:
    """The measured rows of one run as a baseline."""
    return Baseline(
        recorded=report.started,
        environment=report.environment,
        rows=tuple(
            baseline_row(result.row, result.measurement)
            for result in report.results
            if result.measurement is not None
        ),
    )


@cache
def reference(folder: Path) -> dict[tuple[object, ...], Measurement]:
    """The published A100 table by `RowSpec.reference_key`; empty if there is none."""
    published = find(folder, REFERENCE_KEY)
    if published is None:
        return {}
    return {row.row.reference_key: row.measurement for row in published[1].rows}
