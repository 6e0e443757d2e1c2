"""What one device measured before: records, and `baselines/<device key>/baseline.json`.

Knows the files, and nothing of the meaning of their figures.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal

from llama_perf.errors import RecordError
from llama_perf.files import (
    CHECKOUT,
    check_readable_folder,
    is_absent,
    is_checkout,
    read_bytes,
    write_atomically,
)
from llama_perf.results import contradictions
from llama_perf.results.closeness import with_closeness
from llama_perf.results.measurement import Measurement
from llama_perf.results.processes import (
    ProcessSamples,
    deviation,
    median_speed,
    samples_of,
)
from llama_perf.results.run import Before, Environment, Report, RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import from_json, from_plain, read_json, record, to_json
from llama_perf.words import counted

FILE_NAME = "baseline.json"
REFERENCE_KEY = "a100-reference"


@record
class BaselineRow:
    """One row of a baseline; the fingerprint is that of the row as it was run.

    `processes` has all that ran the row, in their order, if there were several.
    `measurement` is then that of the process with the median speed, with the time to
    compile of those that compiled anew and a closeness that any of them measured, and
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

    @property
    def before(self) -> Before:
        """The row as what another one is compared with.

        The GPU's states and the times of single tokens stay in the baseline: in a file
        of results they would take more room than all the rest of it.
        """
        return Before(
            measurement=replace(self.measurement, card=None, token_ns=None),
            processes=self.processes or (samples_of(self.measurement),),
        )

    @property
    def result(self) -> RowResult:
        """The row as a run's result has it."""
        return RowResult(
            id=self.id,
            row=self.row,
            status=Status.MEASURED,
            measurement=self.measurement,
        )


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


def read(path: Path, *, device_key: str | None = None) -> Baseline:
    """Read a baseline; raises RecordError that names the file and the dotted field.

    It is also raised for a file that contradicts itself, and for one that is not of the
    device `device_key`, where that is given.
    """
    return _checked(read_json(Baseline, path), source=str(path), device_key=device_key)


def parse(text: str, *, source: str) -> Baseline:
    """Read a baseline from text, as `read` does."""
    return _checked(from_json(Baseline, text, source=source), source=source)


def from_section(section: object, *, source: str) -> Baseline:
    """Read a baseline from plain values of JSON, as `read` does."""
    return _checked(from_plain(Baseline, section, source=source), source=source)


def _checked(
    baseline: Baseline, *, source: str, device_key: str | None = None
) -> Baseline:
    lines = _contradictions(baseline, device_key)
    contradictions.refuse(lines, source=source)
    return baseline


def damage(path: Path, *, device_key: str) -> list[str]:
    """All that `read` refuses in a device's file, each in a line."""
    try:
        baseline = read_json(Baseline, path)
    except RecordError as error:
        return [str(error)]
    return [f"{path}: {line}" for line in _contradictions(baseline, device_key)]


def _contradictions(baseline: Baseline, device_key: str | None) -> Iterator[str]:
    own_key = baseline.environment.device_key
    if device_key is not None and device_key != own_key:
        yield (
            f"environment.device_key: {own_key!r} is not the folder's device,"
            f" {device_key!r}: the file belongs in {own_key}/"
        )
    if not baseline.rows:
        yield "rows: there is none; a baseline has at least one"
    yield from contradictions.of_ids([row.id for row in baseline.rows], where="rows")
    for number, row in enumerate(baseline.rows):
        where = f"rows.{number}"
        key = own_key if row.environment is None else row.environment.device_key
        if key != own_key:
            field = f"{where}.environment.device_key"
            yield f"{field}: {key!r} is not the file's, {own_key!r}"
        yield from contradictions.of_row(row.id, row.fingerprint, row.row, where=where)
        of = f"{where}.measurement"
        yield from contradictions.of_speed(row.measurement, row.row, where=of)
        yield from contradictions.of_ranks(row.measurement, row.row, where=of)
        samples = row.processes or ()
        yield from contradictions.of_speeds(samples, row.row, where=where)
        if row.processes is not None and len(row.processes) < 2:
            yield (
                f"{where}.processes: {len(row.processes)} of them; allowed: at least 2,"
                " or none for a row that one process measured"
            )
            continue
        yield from contradictions.of_processes(
            row.measurement, row.samples, row.between_process_deviation, where=where
        )
        if row.processes and samples_of(row.measurement) not in row.processes:
            yield f"{where}.measurement: {contradictions.OF_NO_PROCESS}"


def find(folder: Path, device_key: str) -> tuple[Path, Baseline] | None:
    """The baseline of a device, or None if none is recorded."""
    path = path_of(folder, device_key)
    return (path, read(path, device_key=device_key)) if _is_there(path) else None


def check_replaceable(folder: Path, device_key: str) -> None:
    """Raise RecordError where something is at a device's path that is no file."""
    path = path_of(folder, device_key)
    if _is_there(path):
        read_bytes(path, error=RecordError)


def _is_there(path: Path) -> bool:
    """Whether a baseline is at `path`, or something else in place of it or its folder.

    Whoever reads it gets the reason why it cannot be read.
    """
    return not is_absent(path) or any(
        not is_absent(folder) and not os.path.isdir(folder)
        for folder in (path.parent, path.parent.parent)
    )


def keys(folder: Path) -> list[str]:
    """The devices that have a baseline, even one that cannot be read.

    Raises SpecError where the folder cannot be listed.
    """
    check_readable_folder("baselines", folder)
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if not os.path.isfile(entry) and _is_there(path_of(folder, entry.name))
    )


def record_rows(
    folder: Path,
    *,
    environment: Environment,
    results: Iterable[RowResult],
    fresh: bool = False,
) -> tuple[Path, Baseline]:
    """Store the measured rows in the device's baseline.

    `results` and what is raised are those of `updated`; other rows stay, unless `fresh`
    starts the file anew. Where it raises RecordError, nothing is stored.
    """
    path = path_of(folder, environment.device_key)
    old = None
    if _is_there(path) and not fresh:
        old = read(path, device_key=environment.device_key)
    baseline = updated(old, environment=environment, results=results)
    write_atomically(path, to_json(baseline))
    return path, baseline


def updated(
    old: Baseline | None, *, environment: Environment, results: Iterable[RowResult]
) -> Baseline:
    """A baseline with the measured rows in their places, and new ones at the end.

    `results` has one result for each process that ran a row. The other rows of `old`
    stay with the environment they were recorded in, and a row that is recorded without
    closeness keeps the one it had. Raises RecordError if a row ended INVALID, had an
    injected slowdown or was measured in only some of its processes, or if no row was
    measured.
    """
    rows = {row.id: row for row in _measured_rows(results)}
    kept = {}
    for row in () if old is None else old.rows:
        assert old is not None, "it has the row"
        new = rows.get(row.id)
        if new is not None and new.fingerprint == row.fingerprint:
            figures = with_closeness(new.measurement, row.measurement)
            rows[row.id] = replace(new, measurement=figures)
        where = row.environment or old.environment
        kept[row.id] = replace(
            row,
            recorded=row.recorded or old.recorded,
            environment=None if where == environment else where,
        )
    return Baseline(
        recorded=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment,
        rows=tuple((kept | rows).values()),
    )


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
    """A row as it is stored, from one measurement for each of its processes.

    Without the times of its tokens: no comparison needs them, and they would be most of
    the file.
    """
    middle = median_speed(measurements)
    compiled = [one.compile_s for one in measurements if one.compile_s is not None]
    close = (one.closeness for one in (middle, *measurements) if one.closeness)
    processes = tuple(map(samples_of, measurements))
    return BaselineRow(
        id=row.id,
        fingerprint=row.fingerprint,
        row=row,
        measurement=replace(
            middle,
            compile_s=min(compiled, default=None),
            closeness=next(close, None),
            token_ns=None,
        ),
        between_process_deviation=deviation(processes),
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
