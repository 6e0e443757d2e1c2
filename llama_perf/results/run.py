"""The results of a run: where it ran, how its rows ended, and the verdicts.

Reads them from files, and merges those of several runs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from enum import Enum
from pathlib import Path
from typing import Literal

from llama_perf.errors import RecordError, SpecError
from llama_perf.results import contradictions
from llama_perf.results.measurement import Measurement
from llama_perf.results.processes import ProcessSamples, samples_of
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import from_json, read_json, record


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)


@record
class Environment:
    """The machine and the libraries a measurement was taken on; None: not known.

    `cards` counts the GPUs that torch saw in a run with rows of several ranks, and
    `links` says how they are linked; both are part of the key then.
    """

    device_key: str
    device_name: str
    device_memory_bytes: int
    threads: int | None
    driver: str | None
    cuda: str | None
    platform: str | None
    python: str | None
    torch: str | None
    torchao: str | None
    triton: str | None
    llama_perf: str | None
    commit: str | None
    float32_matmul_precision: str | None
    device_uuid: str | None = None
    cpu_features: str | None = None
    transformers: str | None = None
    bitsandbytes: str | None = None
    gemlite: str | None = None
    cards: int | None = None
    links: str | None = None

    def __post_init__(self) -> None:
        # It names a folder of baselines.
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.device_key):
            allowed = "allowed: small letters, digits, '.' and '-'"
            raise SpecError("device_key", self.device_key, allowed)

    def changes(self, new: "Environment", *, commit: bool = False) -> tuple[str, ...]:
        """Fields in which `new` differs, each as "field: old -> new".

        The commit is compared only with `commit`.
        """
        return tuple(
            f"{name}: {_known(getattr(self, name))} -> {_known(getattr(new, name))}"
            for name in Environment.__dataclass_fields__
            if (commit or name != "commit")
            and getattr(self, name) != getattr(new, name)
        )


class Status(Enum):
    """How a row ended."""

    MEASURED = "MEASURED"
    NOT_RUN = "NOT_RUN"
    INVALID = "INVALID"


@record
class RowResult:
    """One row and how it ended; `reason` says why it was not measured."""

    id: str
    row: RowSpec
    status: Status
    reason: str | None = None
    measurement: Measurement | None = None

    @property
    def summary(self) -> str:
        """How it ended, in a few words."""
        if self.measurement is None:
            return f"{self.status.value}: {self.reason}"
        return f"{self.measurement.tok_s:.2f} tok/s"


class Verdict(Enum):
    """The result of comparing a row with its baseline."""

    SAME = "SAME"
    FASTER = "FASTER"
    SMALLER = "SMALLER"
    SLOWER = "SLOWER"
    ALREADY_SLOWER = "ALREADY_SLOWER"
    LARGER = "LARGER"
    ALREADY_LARGER = "ALREADY_LARGER"
    WORSE = "WORSE"
    UNDECIDED = "UNDECIDED"
    NO_BASELINE = "NO_BASELINE"
    INCOMPARABLE = "INCOMPARABLE"
    INVALID = "INVALID"
    NOT_RUN = "NOT_RUN"
    NOT_COMPARED = "NOT_COMPARED"


@record
class MetricChange:
    """The change of one metric since the baseline.

    `change` is current / baseline - 1, and for a closeness in dB the difference. Beyond
    `limit`, a share or dB, the metric is worse; without one it is only reported.
    """

    metric: str
    baseline: float
    current: float
    change: float
    limit: float | None
    worse: bool


@record
class Before:
    """What a row was compared with: the stored row, or the base of its pairs.

    `processes` has all of its processes, `measurement` the figures of the middle one,
    without the GPU's states and the times of single tokens.
    """

    measurement: Measurement
    processes: tuple[ProcessSamples, ...]


@record
class Comparison:
    """The verdict on one row, with its reason in words.

    `why` has the operators of a decoding step that grew, for a row that failed.
    `suspicious` and `suspicious_peak` say that the run's own process became slower, or
    larger, by more than the limit, even where fresh processes did not.
    `minimum_detectable` is the loss of speed, as a share, that a run detects nine times
    in ten; None if the baseline has too few processes to know. `change_interval` is
    that of the change of tok/s, a share, where `pairs` of processes were compared.
    `bandwidth_share` is the device's bandwidth over the baseline's, where both are
    known. `before` is what the row was compared with, None where nothing was: it was
    not measured, or is another row or has other weights than the stored one.
    `processes` are those of this run that decided on the row, None where its own
    process did: the fresh ones, or the head's where pairs ran. `unjudged_closeness`
    says why a closeness that was measured is not judged.
    """

    id: str
    verdict: Verdict
    reason: str
    failed: bool
    changes: tuple[MetricChange, ...] = ()
    why: tuple[str, ...] = ()
    suspicious: bool = False
    suspicious_peak: bool = False
    minimum_detectable: float | None = None
    change_interval: tuple[float, float] | None = None
    pairs: int | None = None
    bandwidth_share: float | None = None
    before: Before | None = None
    processes: tuple[ProcessSamples, ...] | None = None
    unjudged_closeness: str | None = None

    @property
    def doubtful(self) -> bool:
        """Whether fresh processes have to decide on the row."""
        return self.suspicious or self.suspicious_peak


@record
class Report:
    """The results of one run and, if it was compared with a baseline, the verdicts.

    `selected` counts the rows that were to run; `again` are the words of the command
    that runs them without pytest. `reference` has, by row id, the figures of the
    published A100 table. `stale` are ids in the baseline that no set has any more.
    `overall` is the mean change of rows that were compared in pairs, in words. `note`
    says what a reader has to know of the whole run, such as that its figures are made
    up.
    """

    kind: Literal["llama-perf report"] = "llama-perf report"
    schema_version: Literal[1] = 1
    started: str
    environment: Environment
    selected: int = 0
    again: tuple[str, ...] = ()
    device_bandwidth_gb_s: float | None = None
    results: tuple[RowResult, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    reference: dict[str, Measurement] = field(default_factory=dict)
    baseline_source: str | None = None
    environment_changes: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    overall: str | None = None
    note: str | None = None

    @property
    def failed(self) -> bool:
        """Whether any row failed."""
        return any(comparison.failed for comparison in self.comparisons)

    @property
    def judged(self) -> list[tuple[RowResult, Comparison | None]]:
        """Each result with its verdict, None where there is none yet."""
        verdicts = {comparison.id: comparison for comparison in self.comparisons}
        return [(result, verdicts.get(result.id)) for result in self.results]


def read_report(path: Path) -> Report:
    """Read the results of a run; raises RecordError that names the file and the field.

    It is also raised for results that contradict themselves.
    """
    return _checked(read_json(Report, path), source=str(path))


def parse_report(text: str, *, source: str) -> Report:
    """Read the results of a run from text, as `read_report` does."""
    return _checked(from_json(Report, text, source=source), source=source)


def _checked(report: Report, *, source: str) -> Report:
    contradictions.refuse(_contradictions(report), source=source)
    return report


def _contradictions(report: Report) -> Iterator[str]:
    ids = [result.id for result in report.results]
    yield from contradictions.of_ids(ids, where="results")
    for number, result in enumerate(report.results):
        where = f"results.{number}"
        yield from contradictions.of_id(result.id, result.row, where=where)
        is_measured = result.status is Status.MEASURED
        if is_measured != (result.measurement is not None):
            figures = "without a" if is_measured else "with a"
            yield f"{where}.status: {result.status.value} {figures} measurement"
        if result.measurement is not None:
            of = f"{where}.measurement"
            yield from contradictions.of_speed(result.measurement, result.row, where=of)
            yield from contradictions.of_ranks(result.measurement, result.row, where=of)
    compared = [comparison.id for comparison in report.comparisons]
    yield from contradictions.of_ids(compared, where="comparisons")
    rows = {result.id: result.row for result in report.results}
    for number, comparison in enumerate(report.comparisons):
        where, row = f"comparisons.{number}", rows.get(comparison.id)
        if row is None:
            yield f"{where}.id: {comparison.id!r} is in no result"
            continue
        processes = comparison.processes or ()
        yield from contradictions.of_speeds(processes, row, where=where)
        if comparison.before is not None:
            of = f"{where}.before"
            yield from _contradictions_before(comparison.before, row, where=of)
    # Older files do not say how many were selected.
    if 0 < report.selected < len(ids):
        yield f"selected: {report.selected} rows, and {len(ids)} have results"


def _contradictions_before(
    before: Before, row: RowSpec, *, where: str
) -> Iterator[str]:
    now, processes = before.measurement, before.processes
    yield from contradictions.of_speed(now, row, where=f"{where}.measurement")
    yield from contradictions.of_ranks(now, row, where=f"{where}.measurement")
    yield from contradictions.of_speeds(processes, row, where=where)
    if not processes:
        yield f"{where}.processes: there is none; allowed: at least 1"
        return
    yield from contradictions.of_middle(now, processes, where=where)
    if samples_of(now) not in processes:
        yield f"{where}.measurement: {contradictions.OF_NO_PROCESS}"


def read_merged(paths: Sequence[Path]) -> Report:
    """The results in `paths` as one report; raises RecordError.

    They must be of one environment and one commit. A row that is in several files is
    taken, with its verdict, from the first in which it was measured, else from the
    last. Rows that the runs had selected and did not reach stay counted as missing.
    """
    reports = [read_report(path) for path in paths]
    first = reports[0]
    if len(reports) == 1:
        return first
    results: dict[str, RowResult] = {}
    comparisons: dict[str, Comparison] = {}
    reference: dict[str, Measurement] = {}
    missing = 0
    for path, report in zip(paths, reports, strict=True):
        if changes := first.environment.changes(report.environment, commit=True):
            raise RecordError(
                f"{path}: it does not belong to {paths[0]}: {'; '.join(changes)}"
            )
        for result, comparison in report.judged:
            known = results.get(result.id)
            if known is not None and known.measurement is not None:
                continue
            results[result.id] = result
            comparisons.pop(result.id, None)
            if comparison is not None:
                comparisons[result.id] = comparison
        reference |= report.reference
        missing += max(report.selected - len(report.results), 0)
    return replace(
        first,
        selected=len(results) + missing,
        results=tuple(results.values()),
        comparisons=tuple(comparisons.values()),
        reference=reference,
        stale=tuple(dict.fromkeys(row for report in reports for row in report.stale)),
    )
