"""The value types between the stages, frozen dataclasses stored as strict JSON.

Imports no torch and does no arithmetic; `llama_perf.strict_json` reads and writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Literal

from pydantic import ConfigDict

from llama_perf.errors import SpecError
from llama_perf.results.evidence import (
    CardState,
    Ceiling,
    LinearChoice,
    StepWork,
    ValueCheck,
)
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import STRICT


class Status(Enum):
    """How a row ended."""

    MEASURED = "MEASURED"
    NOT_RUN = "NOT_RUN"
    INVALID = "INVALID"


class Verdict(Enum):
    """What the comparison with a baseline says of a row."""

    SAME = "SAME"
    FASTER = "FASTER"
    SMALLER = "SMALLER"
    SLOWER = "SLOWER"
    LARGER = "LARGER"
    UNDECIDED = "UNDECIDED"
    NO_BASELINE = "NO_BASELINE"
    INCOMPARABLE = "INCOMPARABLE"
    INVALID = "INVALID"
    NOT_RUN = "NOT_RUN"
    NOT_COMPARED = "NOT_COMPARED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """The machine and the libraries a measurement was taken on; None: not known."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What one row measured. Speeds are medians over its samples.

    `tok_s` counts all new tokens of the batch over the whole generation, prefill
    included, as the reference does; `decode_tok_s` leaves the prefill and the first
    token out. `bandwidth_gb_s` is model size x tok/s of one sequence, also as in the
    reference. Peaks: on CUDA the allocator's reserved and allocated bytes, on CPU the
    process's resident set over what it is when the row is gone, and the bytes that its
    tensors ask for (`allocated.py`). GB are 10^9 bytes, raw samples in ns: fewer than
    the row's `num_samples` where those would have taken more than `samples_budget_s`,
    None: no budget. `card` are its states before the first sample and after each,
    `neighbours` other processes that computed on it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tok_s: float
    bandwidth_gb_s: float
    peak_memory_bytes: int
    model_size_bytes: int
    weights: str
    decode_tok_s: float | None = None
    time_to_first_token_s: float | None = None
    device_bandwidth_gb_s: float | None = None
    ceiling: Ceiling | None = None
    peak_allocated_bytes: int | None = None
    build_peak_bytes: int | None = None
    build_s: float | None = None
    warm_up_s: float | None = None
    graph_breaks: int | None = None
    compilations: int | None = None
    injected_slowdown: float = 0.0
    autoquant: tuple[LinearChoice, ...] | None = None
    step: StepWork | None = None
    check: ValueCheck | None = None
    joules_per_token: float | None = None
    card: tuple[CardState, ...] | None = None
    card_problem: str | None = None
    neighbours: tuple[str, ...] | None = None
    samples_budget_s: float | None = None
    sample_ns: tuple[int, ...] = ()
    first_token_ns: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.tok_s <= 0:
            raise SpecError("tok_s", self.tok_s, "allowed: more than 0")
        for name in ("peak_memory_bytes", "model_size_bytes"):
            if getattr(self, name) < 0:
                raise SpecError(name, getattr(self, name), "allowed: 0 or more")

    @property
    def device_bandwidth_share(self) -> float | None:
        """Model bandwidth over the bandwidth measured in the same run."""
        if self.device_bandwidth_gb_s is None:
            return None
        return self.bandwidth_gb_s / self.device_bandwidth_gb_s


@dataclass(frozen=True, kw_only=True, slots=True)
class RowResult:
    """One row and how it ended; `reason` is given unless it was measured."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    id: str
    row: RowSpec
    status: Status
    reason: str | None = None
    measurement: Measurement | None = None

    @property
    def told(self) -> str:
        """How it ended, in a few words."""
        if self.measurement is None:
            return f"{self.status.value}: {self.reason}"
        return f"{self.measurement.tok_s:.2f} tok/s"


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricChange:
    """One metric of a row beside its baseline.

    `change` is current / baseline - 1; `limit` is the change from which on the
    metric counts as worse, or None where it is only reported.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    metric: str
    baseline: float
    current: float
    change: float
    limit: float | None
    worse: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The verdict on one row, with its reason in words.

    `why`: of a row that lost, which operators of a step grew and what to run again.
    `suspicious` says that its one process lost more speed than the screen allows,
    `suspicious_peak` that its peak memory grew beyond the limit, whatever the fresh
    processes said then, and `minimum_detectable` is the loss of speed, as a share, that
    a run finds nine times in ten; None where the baseline has too few processes to
    tell.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    id: str
    verdict: Verdict
    reason: str
    failed: bool
    changes: tuple[MetricChange, ...] = ()
    why: tuple[str, ...] = ()
    suspicious: bool = False
    suspicious_peak: bool = False
    minimum_detectable: float | None = None

    @property
    def doubtful(self) -> bool:
        """Whether fresh processes are, or were, to decide."""
        return self.suspicious or self.suspicious_peak


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessSamples:
    """What one fresh process measured of a row, in short."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tok_s: float
    peak_memory_bytes: int
    sample_ns: tuple[int, ...]
    device_bandwidth_gb_s: float | None = None

    def __post_init__(self) -> None:
        if self.tok_s <= 0:
            raise SpecError("tok_s", self.tok_s, "allowed: more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineRow:
    """One row of a baseline; the fingerprint is that of the row as it was run.

    `processes` are all that it was run in, in their order, where there were several;
    `measurement` is then that of the process with the median speed, and
    `between_process_deviation` the standard deviation of their logarithms. `recorded`
    and `environment` are the baseline's own unless they are given: a row that was kept
    while others were recorded anew.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    id: str
    fingerprint: str
    row: RowSpec
    measurement: Measurement
    between_process_deviation: float | None = None
    processes: tuple[ProcessSamples, ...] | None = None
    recorded: str | None = None
    environment: Environment | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What one device measured, kept in `baselines/<device key>/baseline.json`.

    Version 1 knew one process a row.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["llama-perf baseline"] = "llama-perf baseline"
    schema_version: Literal[1, 2] = 2
    recorded: str
    note: str | None = None
    environment: Environment
    rows: tuple[BaselineRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One run: what was measured and, where a baseline was given, the verdicts.

    `selected` counts the rows that were to run, `again` are the words of the command
    that runs them without pytest, `reference` holds the counterparts of
    the rows in the published A100 table, `stale` the ids that the baseline has and no
    set has any more.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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
