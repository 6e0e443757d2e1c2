"""What one device measured before, as it is stored in `baselines/`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from llama_perf.errors import check_positive
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Measurement
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import record


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
    `measurement` is then that of the process with the median speed, and
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
