"""The speeds of a baseline, and the quantity by which a row's speed is compared.

On the same GPU we compare tok/s. On another GPU of that model, or on a CPU, we compare
ratios: a row's tok/s over those of the unquantized row, or over the bandwidth of the
device, both measured in the same run. Knows no verdict.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from itertools import repeat
from statistics import geometric_mean

from llama_perf.gate import thresholds
from llama_perf.gate.thresholds import THRESHOLDS, Spread
from llama_perf.results.baselines import Baseline, BaselineRow, ProcessSamples
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Measurement
from llama_perf.rows.spec import RowSpec


class Basis(Enum):
    """The quantity that is compared; its value is the metric's name in a report."""

    TOK_S = "tok/s"
    RATIO = "tok/s over the unquantized row's"
    BANDWIDTH = "tok/s per GB/s of the device"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSpeed:
    """The mean speed of a row's processes on one basis, and how much they differ."""

    mean: float
    processes: int
    spread: Spread

    @property
    def minimum_detectable(self) -> float:
        """The smallest loss, as a share, that a run detects nine times in ten."""
        return thresholds.minimum_detectable(self.spread, self.processes)


class SpeedBaseline:
    """A baseline, prepared once for a run that measures in `environment`.

    The deviations of all rows are estimated together.
    """

    def __init__(
        self, stored: Baseline, environment: Environment | None = None
    ) -> None:
        self.stored = stored
        self.environment = stored.environment if environment is None else environment
        # Reversed, so that the first of two rows with one id is taken.
        self._rows = {row.id: row for row in reversed(stored.rows)}
        self._unquantized = {row.id: self._most_similar(row) for row in stored.rows}
        self._speeds = {basis: self._estimate(basis) for basis in Basis}

    def row(self, row_id: str) -> BaselineRow | None:
        """The stored row of that id, or None."""
        return self._rows.get(row_id)

    def unquantized_row(self, row_id: str) -> BaselineRow | None:
        """The most similar unquantized row of the same recording, or None."""
        return self._unquantized.get(row_id)

    def _most_similar(self, row: BaselineRow) -> BaselineRow | None:
        fields = asdict(row.row).items()

        def belongs(one: BaselineRow) -> tuple[object, ...]:
            return one.row.model, one.row.device, one.row.batch_size, one.recorded

        candidates = (
            candidate
            for candidate in self.stored.rows
            if not candidate.row.is_quantized and belongs(candidate) == belongs(row)
        )
        return min(
            candidates,
            key=lambda candidate: len(fields - asdict(candidate.row).items()),
            default=None,
        )

    def bases(self, row: RowSpec) -> list[Basis]:
        """The quantities by which the speed of `row` is compared in this run."""
        # A GPU without a known UUID counts as another one.
        then, now = self.stored.environment, self.environment
        gpu, uuid = row.device == "cuda", then.device_uuid
        if gpu and uuid and (uuid, then.driver) == (now.device_uuid, now.driver):
            return [Basis.TOK_S]
        if not row.is_quantized:
            return [Basis.BANDWIDTH]
        # The speed of packed products on a CPU does not follow its bandwidth.
        return [Basis.RATIO, Basis.BANDWIDTH] if gpu else [Basis.RATIO]

    def values(self, basis: Basis, row_id: str) -> list[float] | None:
        """A stored row's speed in each of its processes, or None if it is not known."""
        # The n-th process of a row ran together with the n-th of the unquantized row.
        unquantized = self.unquantized_row(row_id)
        others: Iterable[ProcessSamples | Measurement | None] = repeat(None)
        if basis is Basis.RATIO and unquantized is not None:
            others = unquantized.samples
        pairs = zip(self._rows[row_id].samples, others, strict=False)
        speeds = [speed_in(basis, process, other) for process, other in pairs]
        known = [speed for speed in speeds if speed is not None]
        return known if len(known) == len(speeds) else None

    def speed(self, basis: Basis, row_id: str) -> StoredSpeed | None:
        """A stored row's speed, or None if too few processes measured it."""
        return self._speeds[basis].get(row_id)

    def _estimate(self, basis: Basis) -> dict[str, StoredSpeed]:
        """The speeds of all rows on one basis: their deviations are shrunk together."""
        values = {}
        for row_id in self._rows:
            unquantized = self.unquantized_row(row_id)
            # The ratio of a row to itself is 1 in every process.
            if basis is Basis.RATIO and unquantized and unquantized.id == row_id:
                continue
            speeds = self.values(basis, row_id) or ()
            if len(speeds) >= THRESHOLDS.min_processes:
                values[row_id] = speeds
        logs = ([*map(math.log, speeds)] for speeds in values.values())
        spreads = thresholds.shrunk([*map(thresholds.between_processes, logs)])
        return {
            row_id: StoredSpeed(
                mean=geometric_mean(speeds), processes=len(speeds), spread=spread
            )
            for (row_id, speeds), spread in zip(values.items(), spreads, strict=True)
        }

    def judged_speed(self, row_id: str) -> tuple[Basis, StoredSpeed] | None:
        """The first quantity by which a row is judged; None: too few processes."""
        bases = self.bases(self._rows[row_id].row)
        for basis in (*bases, Basis.BANDWIDTH, Basis.TOK_S):
            if (speed := self.speed(basis, row_id)) is not None:
                return basis, speed
        return None


def speed_in(
    basis: Basis,
    measured: Measurement | ProcessSamples,
    unquantized: Measurement | ProcessSamples | None,
) -> float | None:
    """The speed of one process; None if its divisor was not measured."""
    divisor = {
        Basis.TOK_S: 1.0,
        Basis.RATIO: None if unquantized is None else unquantized.tok_s,
        Basis.BANDWIDTH: measured.device_bandwidth_gb_s,
    }[basis]
    return measured.tok_s / divisor if divisor else None
