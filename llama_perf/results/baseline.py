"""What one device measured before, as it is stored in `baselines/`."""

from __future__ import annotations

from typing import Literal

from llama_perf.errors import SpecError
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Measurement
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import record


@record
class ProcessSamples:
    """What one fresh process measured of a row, in short."""

    tok_s: float
    peak_memory_bytes: int
    sample_ns: tuple[int, ...]
    device_bandwidth_gb_s: float | None = None

    def __post_init__(self) -> None:
        if self.tok_s <= 0:
            raise SpecError("tok_s", self.tok_s, "allowed: more than 0")


@record
class BaselineRow:
    """One row of a baseline; the fingerprint is that of the row as it was run.

    `processes` are all that it was run in, in their order, where there were several;
    `measurement` is then that of the process with the median speed, and
    `between_process_deviation` the standard deviation of their logarithms. `recorded`
    and `environment` are the baseline's own unless they are given: a row that was kept
    while others were recorded anew.
    """

    id: str
    fingerprint: str
    row: RowSpec
    measurement: Measurement
    between_process_deviation: float | None = None
    processes: tuple[ProcessSamples, ...] | None = None
    recorded: str | None = None
    environment: Environment | None = None


@record
class Baseline:
    """What one device measured, kept in `baselines/<device key>/baseline.json`.

    Version 1 knew one process a row.
    """

    kind: Literal["llama-perf baseline"] = "llama-perf baseline"
    schema_version: Literal[1, 2] = 2
    recorded: str
    note: str | None = None
    environment: Environment
    rows: tuple[BaselineRow, ...]
