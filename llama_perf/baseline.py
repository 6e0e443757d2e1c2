"""`baselines/<device key>/baseline.json`: reading, recording, finding.

Knows the files, not what the figures mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from llama_perf.codec import from_json, to_json, write_atomically
from llama_perf.errors import RecordError
from llama_perf.records import (
    Baseline,
    BaselineRow,
    Environment,
    Measurement,
    RowResult,
    Status,
)
from llama_perf.spec import RowSpec

FILE_NAME = "baseline.json"
REFERENCE_KEY = "a100-reference"


def default_folder() -> Path:
    """`baselines/` of this checkout, else of the working directory."""
    checkout = Path(__file__).resolve().parents[1]
    root = checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
    return root / "baselines"


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
    return baseline


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

    Rows that this run did not measure stay as they were, with the environment they
    were recorded in, unless `fresh` starts the file anew. Raises RecordError, and
    stores nothing, where a row ended INVALID, was measured with an injected slowdown,
    or none was measured at all.
    """
    rows = []
    for result in results:
        if result.status is Status.INVALID:
            raise RecordError(f"baseline: {result.id} is INVALID: {result.reason}")
        if result.measurement is None:
            continue
        if result.measurement.injected_slowdown:
            raise RecordError(f"baseline: {result.id} ran with an injected slowdown")
        rows.append(baseline_row(result.row, result.measurement))
    if not rows:
        raise RecordError("baseline: no row was measured, so there is none to record")
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


def baseline_row(row: RowSpec, measurement: Measurement) -> BaselineRow:
    """A row as it is stored."""
    return BaselineRow(
        id=row.id, fingerprint=row.fingerprint, row=row, measurement=measurement
    )


@cache
def reference(folder: Path) -> dict[tuple[object, ...], Measurement]:
    """The published A100 table by `RowSpec.reference_key`; empty where absent."""
    found = find(folder, REFERENCE_KEY)
    if found is None:
        return {}
    return {row.row.reference_key: row.measurement for row in found[1].rows}
