"""`baselines/<device key>/baseline.json`: reading, recording, finding.

Knows the files, not what the figures mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from llama_perf.errors import RecordError
from llama_perf.files import write_atomically
from llama_perf.gate.noise import between_processes
from llama_perf.results.baseline import Baseline, BaselineRow, ProcessSamples
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import from_json, to_json

FILE_NAME = "baseline.json"
REFERENCE_KEY = "a100-reference"


def default_folder() -> Path:
    """`baselines/` of this checkout, else of the working directory."""
    return _root() / "baselines"


def project_file() -> Path:
    """The `pyproject.toml` beside it, where there is one."""
    return _root() / "pyproject.toml"


def _root() -> Path:
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def path_of(folder: Path, device_key: str) -> Path:
    """Where the baseline of a device lies."""
    return folder / device_key / FILE_NAME


def read(path: Path) -> Baseline:
    """Read a baseline; raises RecordError naming the file and the dotted field."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
    baseline = from_json(Baseline, text, source=str(path))
    seen: set[str] = set()
    for number, row in enumerate(baseline.rows):
        if row.id in seen:
            raise RecordError(f"{path}: rows.{number}.id: {row.id!r} stands twice")
        seen.add(row.id)
        _check_processes(row, where=f"{path}: rows.{number}")
    return baseline


def _check_processes(row: BaselineRow, *, where: str) -> None:
    """Raise RecordError where a row's deviation is not that of its processes."""
    stored, processes = row.between_process_deviation, row.processes or ()
    if row.processes is not None and len(processes) < 2:
        raise RecordError(
            f"{where}.processes: {len(processes)} of them; allowed: at least 2, or none"
            " for a row that one process measured"
        )
    found = _deviation([each.tok_s for each in processes])
    if (stored is None) != (found is None) or (
        stored is not None
        and found is not None
        and not math.isclose(stored, found, rel_tol=1e-6)
    ):
        raise RecordError(
            f"{where}.between_process_deviation: {stored} is not allowed; its"
            f" {max(len(processes), 1)} processes have {found}"
        )


def _deviation(tok_s: Sequence[float]) -> float | None:
    if len(tok_s) < 2:
        return None
    return between_processes([math.log(each) for each in tok_s]).deviation


def find(folder: Path, device_key: str) -> tuple[Path, Baseline] | None:
    """The baseline of a device, or None where none is recorded."""
    path = path_of(folder, device_key)
    return (path, read(path)) if path.exists() else None


def keys(folder: Path) -> list[str]:
    """The devices that have a baseline."""
    return sorted(path.parent.name for path in folder.glob(f"*/{FILE_NAME}"))


def record(
    folder: Path,
    *,
    environment: Environment,
    results: Iterable[RowResult],
    fresh: bool = False,
) -> tuple[Path, Baseline]:
    """Store the measured rows in the device's baseline.

    A row that was run in several processes has as many results. Rows that this run
    did not measure stay as they were, with the environment they were recorded in,
    unless `fresh` starts the file anew. Raises RecordError, and stores nothing, where
    a row ended INVALID, was measured with an injected slowdown or in some of its
    processes alone, or none was measured at all.
    """
    rows = _measured_rows(results)
    path = path_of(folder, environment.device_key)
    if path.exists() and not fresh:
        measured = {row.id for row in rows}
        kept = _with_origin(read(path), environment)
        rows += [row for row in kept if row.id not in measured]
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
        measured = [each.measurement for each in processes if each.measurement]
        if not measured:
            continue
        if len(measured) < len(processes):
            reason = next(each.reason for each in processes if each.reason)
            raise RecordError(
                f"baseline: {row_id} was measured in {len(measured)} of"
                f" {len(processes)} processes: {reason}"
            )
        if len(weights := sorted({each.weights for each in measured})) > 1:
            raise RecordError(
                f"baseline: the processes of {row_id} had other weights:"
                f" {', '.join(weights)}"
            )
        rows.append(baseline_row(processes[0].row, *measured))
    if not rows:
        raise RecordError("baseline: no row was measured, so there is none to record")
    return rows


def _with_origin(old: Baseline, new: Environment) -> list[BaselineRow]:
    """The rows of `old`, each with the date and, where it differs, the environment."""
    rows = []
    for row in old.rows:
        environment = row.environment or old.environment
        rows.append(
            replace(
                row,
                recorded=row.recorded or old.recorded,
                environment=None if environment == new else environment,
            )
        )
    return rows


def baseline_row(row: RowSpec, *measurements: Measurement) -> BaselineRow:
    """A row as it is stored, from one measurement for each of its processes."""
    by_speed = sorted(measurements, key=lambda each: each.tok_s)
    several = len(measurements) > 1
    return BaselineRow(
        id=row.id,
        fingerprint=row.fingerprint,
        row=row,
        measurement=by_speed[(len(by_speed) - 1) // 2],
        between_process_deviation=_deviation([each.tok_s for each in measurements]),
        processes=tuple(map(_in_short, measurements)) if several else None,
    )


def _in_short(measurement: Measurement) -> ProcessSamples:
    return ProcessSamples(
        tok_s=measurement.tok_s,
        peak_memory_bytes=measurement.peak_memory_bytes,
        sample_ns=measurement.sample_ns,
        device_bandwidth_gb_s=measurement.device_bandwidth_gb_s,
    )


@cache
def reference(folder: Path) -> dict[tuple[object, ...], Measurement]:
    """The published A100 table by `RowSpec.reference_key`; empty where absent."""
    found = find(folder, REFERENCE_KEY)
    if found is None:
        return {}
    return {row.row.reference_key: row.measurement for row in found[1].rows}
