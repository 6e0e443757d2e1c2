"""The speeds of a baseline, and the quantity by which a row's speed is compared.

On the same GPU we compare tok/s. On another GPU of that model, or on a CPU, we compare
ratios: a row's tok/s over those of the unquantized row, or over the bandwidth of the
device, both measured in the same run. Knows no verdict.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from itertools import repeat

from llama_perf.gate import thresholds
from llama_perf.gate.thresholds import Losses, Spread
from llama_perf.results.baselines import Baseline, BaselineRow
from llama_perf.results.measurement import Measurement
from llama_perf.results.processes import ProcessSamples
from llama_perf.results.run import Environment
from llama_perf.rows.spec import RowSpec


class Basis(Enum):
    """The quantity that is compared; its value is the metric's name in a report."""

    TOK_S = "tok/s"
    RATIO = "tok/s over the unquantized row's"
    BANDWIDTH = "tok/s per GB/s of the device"


class SpeedBaseline:
    """A baseline, prepared once for a run that measures in `environment`.

    `by_pairs` has the ids of the rows on which pairs with the baseline's commit can
    decide. `like` is the baseline that this one is compared with, if that is asked: its
    unquantized rows are then taken here too.

    By id it has the stored `rows` and, for each, the most similar `unquantized` row of
    the same recording or None. By basis and id it has the `speeds` of a row's
    processes, if they are known, and their `spreads`, if there are enough of them. The
    deviations of all rows are estimated together.
    """

    def __init__(
        self,
        stored: Baseline,
        environment: Environment | None = None,
        *,
        by_pairs: Collection[str] = (),
        like: "SpeedBaseline | None" = None,
    ) -> None:
        self.stored = stored
        self.by_pairs = frozenset(by_pairs)
        self.environment = stored.environment if environment is None else environment
        # Reversed, so that the first of two rows with one id is taken.
        self.rows = {row.id: row for row in reversed(stored.rows)}
        self.unquantized = {
            row.id: self._most_similar(row) if like is None else self._as_in(like, row)
            for row in stored.rows
        }
        self.speeds = {
            basis: {
                row_id: speeds
                for row_id in self.rows
                if (speeds := self._values(basis, row_id))
            }
            for basis in Basis
        }
        self.spreads = {basis: _spreads(self.speeds[basis]) for basis in Basis}

    def _most_similar(self, row: BaselineRow) -> BaselineRow | None:
        fields = row.row.work.items()

        def belongs(one: BaselineRow) -> tuple[object, ...]:
            return one.row.model, one.row.device, one.row.batch_size, one.recorded

        candidates = (
            candidate
            for candidate in self.stored.rows
            if not candidate.row.is_quantized and belongs(candidate) == belongs(row)
        )
        return min(
            candidates,
            key=lambda candidate: len(fields - candidate.row.work.items()),
            default=None,
        )

    def _as_in(self, like: "SpeedBaseline", row: BaselineRow) -> BaselineRow | None:
        """The unquantized row that `like` has for it, if it was recorded with it."""
        wanted = like.unquantized.get(row.id)
        found = None if wanted is None else self.rows.get(wanted.id)
        return found if found and found.recorded == row.recorded else None

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

    def _values(self, basis: Basis, row_id: str) -> list[float] | None:
        others: Iterable[ProcessSamples | Measurement | None] = repeat(None)
        unquantized = self.unquantized[row_id]
        if basis is Basis.RATIO and unquantized is not None:
            # The ratio of a row to itself is 1 in every process.
            if unquantized.id == row_id:
                return None
            # The n-th process of a row ran together with the n-th of the other.
            others = unquantized.samples
        pairs = zip(self.rows[row_id].samples, others, strict=False)
        speeds = [speed_in(basis, process, other) for process, other in pairs]
        known = [speed for speed in speeds if speed is not None]
        return known if len(known) == len(speeds) else None

    def judged_by(self, row_id: str, known: Collection[Basis]) -> dict[Basis, str]:
        """The quantities in which a row is judged where only some are `known`.

        Each has the reason why it is judged in place of another one, or none.
        """
        notes: dict[Basis, str] = {}
        for basis in self.bases(self.rows[row_id].row):
            note = ""
            if basis is Basis.RATIO and basis not in known:
                note = "; its unquantized row was not measured with it"
                if self.unquantized[row_id] is None:
                    note = "; no unquantized row was recorded with it"
                basis = Basis.BANDWIDTH
            if basis is Basis.BANDWIDTH and basis not in known:
                basis, note = Basis.TOK_S, "; the device's bandwidth is not known"
            # A basis that replaces another one may be wanted itself as well.
            notes.setdefault(basis, note)
        return notes

    def judged_speeds(self, row_id: str) -> dict[Basis, Sequence[float]]:
        """The stored speeds of a row's processes, in what they are judged by."""
        known = [basis for basis in Basis if row_id in self.speeds[basis]]
        bases = self.judged_by(row_id, known)
        return {basis: self.speeds[basis][row_id] for basis in bases}

    def losses(self, row_id: str, least: float) -> tuple[Basis, Spread, Losses] | None:
        """What stored figures can show of a row, where no loss below `least` counts.

        Of several quantities it is the one that finds the smallest loss. None: there
        are too few processes to know.
        """
        judged = [
            (basis, spread, thresholds.losses(spread, least))
            for basis in self.judged_speeds(row_id)
            if (spread := self.spreads[basis].get(row_id)) is not None
        ]
        return min(judged, key=lambda one: one[2].found, default=None)


def _spreads(speeds: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    least = thresholds.MIN_PROCESSES
    enough = {row_id: some for row_id, some in speeds.items() if len(some) >= least}
    logs = ([*map(math.log, some)] for some in enough.values())
    shrunk = thresholds.shrunk([*map(thresholds.between_processes, logs)])
    return dict(zip(enough, shrunk, strict=True))


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
