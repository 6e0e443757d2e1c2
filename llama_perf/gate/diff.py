"""Two or more recordings compared: the changes of each row, and the verdict on it.

The last recording is judged by the first, by the rules of `gate/verdict.py`. Only the
speed has a limit of its own: both sides may have several processes, and nothing runs
that could confirm a loss. Knows no file.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean

from llama_perf.gate import judgements, thresholds
from llama_perf.gate.disturbed_rows import (
    bandwidth_share,
    disturbance_of_trial,
    guarded,
)
from llama_perf.gate.evidence import Judgement, Trial
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline
from llama_perf.gate.thresholds import as_share, relative_change
from llama_perf.gate.verdict import judge, more_work, refusal
from llama_perf.metric import Metric, Rule, value_of
from llama_perf.metrics import METRICS, PEAK_MEMORY, TOK_S
from llama_perf.results.baselines import BaselineRow
from llama_perf.results.diff import (
    Diff,
    DiffMetric,
    DiffRow,
    DiffSide,
    LimitBy,
    SpeedLimit,
)
from llama_perf.results.disturbance import disturbance_of
from llama_perf.results.recording import Recording
from llama_perf.results.run import Comparison, MetricChange, RowResult, Verdict
from llama_perf.rows.limit_overrides import Limits, ProjectLimits
from llama_perf.words import counted


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffGate:
    """What the last of several recordings is judged by, and by what it is judged.

    `project` has a user's limits; `limit`, a share, replaces those of speed and memory.
    """

    before: SpeedBaseline
    after: SpeedBaseline
    source: str
    project: ProjectLimits = ()
    limit: float | None = None

    def limits_of(self, row: BaselineRow) -> Limits:
        """The limits of a row."""
        limits = judgements.limits_of(row.row, self.project)
        if self.limit is None:
            return limits
        own = {"peak_memory": self.limit, "allocated_memory": self.limit}
        return Limits(limits | own | {"peak_memory_bytes": 0})

    def compare(
        self, then: RowResult, now: RowResult
    ) -> tuple[Comparison, SpeedLimit | None]:
        """The verdict on a row that both have, and the limit of its speed."""
        if then.measurement is None:
            return self._without_first(then, now), None
        row = self.after.rows.get(now.id)
        fingerprint = None if row is None else row.fingerprint
        refused = refusal(now, self.before, fingerprint=fingerprint)
        if refused is not None or row is None:
            assert refused is not None, "what was measured has a row"
            return refused, None
        stored = self.before.rows[now.id]
        limits = self.limits_of(row)
        speed, speed_limit = self._speed(now.id, limits)
        if len(row.samples) < thresholds.MIN_PROCESSES:
            peak = judgements.judge_peak(row.measurement, stored, limits, None)
        else:
            peak_bytes = judgements.stored_peak(row)
            peak = judgements.compare_peak(peak_bytes, stored, limits)
        judged = judge(now, stored, speed, peak, limits)
        share = bandwidth_share(row.measurement, stored)
        return replace(judged, bandwidth_share=share), speed_limit

    def _without_first(self, then: RowResult, now: RowResult) -> Comparison:
        """The verdict where the first recording did not measure a row: no loss."""
        reason = f"{self.source}: {then.summary}"
        verdict = Verdict.NO_BASELINE
        if now.measurement is None:
            verdict, reason = Verdict(now.status.value), f"{now.reason}; {reason}"
        return Comparison(id=now.id, verdict=verdict, reason=reason, failed=False)

    def _speed(self, row_id: str, limits: Limits) -> tuple[Judgement, SpeedLimit]:
        """Judge the speed as `judge_speed` does, by the processes of both sides."""
        known = [
            basis
            for basis in Basis
            if row_id in self.before.speeds[basis]
            and row_id in self.after.speeds[basis]
        ]
        notes = self.before.judged_by(row_id, known)
        if self.limit is not None:
            notes = {Basis.TOK_S: ""}
        judged = [
            self._judged(basis, note, row_id, limits) for basis, note in notes.items()
        ]
        speeds = [self._guarded(speed, row_id) for speed, _ in judged]
        # Of several quantities the one that is nearest to its loss.
        nearest = min(
            (limit for _, limit in judged), key=lambda one: one.change + one.limit
        )
        changes = [change for speed in speeds for change in speed.changes]
        reasons = [speed.reason for speed in speeds]
        if Basis.TOK_S not in notes:
            changes.insert(0, self._change(Basis.TOK_S, row_id))
            reasons.insert(0, judgements.describe(changes[0]))
        judgement = Judgement(
            changes=tuple(changes),
            reason="; ".join(reasons),
            faster=all(speed.faster for speed in speeds),
            undecided=any(speed.undecided for speed in speeds),
            minimum_detectable=nearest.found,
        )
        return judgement, nearest

    def _change(
        self, basis: Basis, row_id: str, limit: float | None = None
    ) -> MetricChange:
        before, after = (
            geometric_mean(side.speeds[basis][row_id])
            for side in (self.before, self.after)
        )
        return judgements.metric_change(basis.value, before, after, limit)

    def _judged(
        self, basis: Basis, note: str, row_id: str, limits: Limits
    ) -> tuple[Judgement, SpeedLimit]:
        sides = (self.before, self.after)
        first, last = (len(side.speeds[basis][row_id]) for side in sides)
        spread = thresholds.difference(
            self.before.spreads[basis].get(row_id),
            self.after.spreads[basis].get(row_id),
            (first, last),
        )
        by: LimitBy = "fixed"
        limit, found = limits["tok_s"], None
        gain = limit
        least_processes = thresholds.MIN_PROCESSES
        why = (
            f"; fixed limit: neither side has the {least_processes} processes from"
            " which noise is estimated"
        )
        if self.limit is not None:
            limit, gain, by, why = self.limit, self.limit, "--limit", ""
        elif spread is not None:
            least = limits["least_loss"]
            beyond = thresholds.difference_limit(spread, least)
            # So noisy a row is never faster: expm1 has no larger value.
            limit, gain = as_share(beyond), math.expm1(min(beyond, 700))
            found = thresholds.difference_found(spread, least)
            by = "noise" if limit > least * (1 + 1e-9) else "least_loss"
            why = f"; by the noise of {first} and {counted(last, 'process')}"
        change = self._change(basis, row_id, limit)
        return (
            Judgement(
                changes=(change,),
                reason=f"{judgements.describe(change)}{why}{note}",
                faster=change.change > gain,
            ),
            SpeedLimit(
                metric=basis.value,
                change=change.change,
                limit=limit,
                by=by,
                found=found,
            ),
        )

    def _guarded(self, speed: Judgement, row_id: str) -> Judgement:
        """The judgement on a speed, which a disturbance of either side may explain."""
        speed = guarded(speed, self.disturbed_after(row_id), None)
        if speed.faster and (disturbance := self.disturbed_before(row_id)):
            words = f"looks faster than {self.source}, which was disturbed"
            reason = f"{speed.reason}; {words}: {disturbance}"
            return replace(speed, faster=False, reason=reason)
        return speed

    def disturbed_before(self, row_id: str) -> str:
        """By what the first recording of a row was disturbed, in words."""
        return _disturbance(row_id, self.before, {})

    def disturbed_after(self, row_id: str) -> str:
        """By what the last recording of a row was disturbed, in words."""
        before, after = (
            side.stored.environment.device_key for side in (self.before, self.after)
        )
        rows = self.before.rows if before == after else {}
        return _disturbance(row_id, self.after, rows)


def _disturbance(
    row_id: str, side: SpeedBaseline, rows: Mapping[str, BaselineRow]
) -> str:
    """By what a row of one side was disturbed; `rows` have the bandwidths before."""
    if (row := side.rows.get(row_id)) is None:
        return ""
    unquantized = side.unquantized[row_id]
    trial = Trial(
        row=row.result, unquantized=None if unquantized is None else unquantized.result
    )
    return disturbance_of_trial(trial, rows)


def diff_of(
    recordings: Sequence[Recording],
    *,
    ids: Collection[str] | None = None,
    project: ProjectLimits = (),
    limit: float | None = None,
) -> Diff:
    """Compare recordings, at least two; of the rows in `ids`, if they are given.

    `project` has a user's limits, `limit` is the user's own for speed and memory.
    """
    first, *_, last = recordings
    before = SpeedBaseline(first.measured, last.measured.environment)
    gate = DiffGate(
        before=before,
        after=SpeedBaseline(last.measured, like=before),
        source=first.source,
        project=project,
        limit=limit,
    )
    ended = [recording.results() for recording in recordings]
    every = dict.fromkeys(row_id for results in ended for row_id in results)
    wanted = [row_id for row_id in every if ids is None or row_id in ids]
    shared = [
        row_id for row_id in wanted if sum(row_id in results for results in ended) > 1
    ]
    environment = first.measured.environment
    return Diff(
        sides=tuple(
            DiffSide(
                source=recording.source,
                recorded=recording.measured.recorded,
                environment=recording.measured.environment,
                note=recording.note,
                changes=environment.changes(
                    recording.measured.environment, commit=True
                ),
                only=tuple(
                    row_id
                    for row_id in wanted
                    if row_id in results and row_id not in shared
                ),
            )
            for recording, results in zip(recordings, ended, strict=True)
        ),
        rows=tuple(
            _row([results.get(row_id) for results in ended], recordings, gate)
            for row_id in shared
        ),
        limit=limit,
    )


def _row(
    ended: Sequence[RowResult | None], recordings: Sequence[Recording], gate: DiffGate
) -> DiffRow:
    first, *_, last = ended
    known = next(result for result in reversed(ended) if result is not None)
    rows = [recording.rows.get(known.id) for recording in recordings]
    comparison, speed = None, None
    if first is not None and last is not None:
        comparison, speed = gate.compare(first, last)
    disturbed = [disturbance_of(row.measurement) if row else "" for row in rows]
    disturbed[0] = gate.disturbed_before(known.id)
    disturbed[-1] = gate.disturbed_after(known.id)
    return DiffRow(
        id=known.id,
        row=known.row,
        statuses=tuple(result.status if result else None for result in ended),
        processes=tuple(len(row.samples) if row else 0 for row in rows),
        disturbed=tuple(disturbed),
        metrics=tuple(_metric(metric, rows, comparison, gate) for metric in METRICS),
        speed=speed,
        comparison=comparison,
    )


def _metric(
    metric: Metric,
    rows: Sequence[BaselineRow | None],
    comparison: Comparison | None,
    gate: DiffGate,
) -> DiffMetric:
    values = [None if row is None else _value(metric, row) for row in rows]
    fallback = metric.column and metric.column.fallback
    if fallback and not any(value is not None for value in values):
        # Only like is compared with like.
        values = [
            None if row is None else value_of(row.measurement, fallback) for row in rows
        ]
    then, *others = values
    changes = [
        relative_change(value, then) if then and value is not None else None
        for value in others
    ]
    shown = DiffMetric(
        metric=metric.title, values=tuple(values), changes=(None, *changes)
    )
    first, last = rows[0], rows[-1]
    if comparison is None or first is None or last is None:
        return shown
    for change in comparison.changes:
        if change.metric == metric.title and change.limit is not None:
            beyond = abs(change.change) > change.limit
            return replace(shown, limit=change.limit, beyond=beyond, worse=change.worse)
    is_judged = comparison.verdict is not Verdict.INCOMPARABLE
    if is_judged and metric.rule in {Rule.WORK, Rule.COUNT}:
        limits = gate.limits_of(last)
        more, less = (
            metric.title in more_work(now.measurement, before.measurement, limits)
            for before, now in ((first, last), (last, first))
        )
        limit = limits[metric.limits[0].name]
        return replace(shown, limit=limit, beyond=more or less, worse=more)
    return shown


def _value(metric: Metric, row: BaselineRow) -> float | None:
    """A metric of a row, by all of its processes where each has it."""
    if metric is TOK_S:
        return geometric_mean(process.tok_s for process in row.samples)
    if metric is PEAK_MEMORY:
        return judgements.stored_peak(row)
    return metric.read(row.measurement)
