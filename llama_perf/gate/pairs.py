"""Pairs of processes, one of each revision or environment: a verdict for each row.

Blocks of pairs decide on the speed (`gate/blocks.py`), without a stored baseline. The
other metrics are those of processes that each side measured the row in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import geometric_mean

from llama_perf.gate import judgements
from llama_perf.gate.blocks import (
    MAX_BLOCKS,
    MIN_BLOCKS,
    TARGET_LOSS,
    Block,
    BlockTest,
    Decision,
    block_test,
)
from llama_perf.gate.evidence import Judgement
from llama_perf.gate.thresholds import as_share
from llama_perf.gate.verdict import judge
from llama_perf.metrics import TOK_S
from llama_perf.results import baselines
from llama_perf.results.measurement import Measurement
from llama_perf.results.processes import ProcessSamples, median_speed, samples_of
from llama_perf.results.run import Comparison, RowResult, Status, Verdict
from llama_perf.rows.limit_overrides import Limits, ProjectLimits
from llama_perf.rows.spec import RowSpec

SIDES = ("base", "head")


@dataclass(slots=True)
class PairedRow:
    """One row: the results of each side, and its blocks.

    `way` says how the blocks were measured, `disturbed` how many were measured again.
    """

    row: RowSpec
    results: dict[str, list[RowResult]]
    blocks: list[Block] = field(default_factory=list)
    way: str = ""
    disturbed: int = 0

    @property
    def missed(self) -> tuple[str, RowResult] | None:
        """The first result that was not measured, and its side."""
        ended = ((side, result) for side in SIDES for result in self.results[side])
        return next((one for one in ended if one[1].measurement is None), None)

    def measurements(self, side: str) -> list[Measurement]:
        """The measurements of a side's processes."""
        results = self.results[side]
        return [result.measurement for result in results if result.measurement]

    def processes(self, side: str) -> tuple[ProcessSamples, ...]:
        """The main figures of a side's processes."""
        return tuple(map(samples_of, self.measurements(side)))

    def merged(self, side: str) -> baselines.BaselineRow:
        """A side's processes as one row, with the measurement of median speed."""
        return baselines.baseline_row(self.row, *self.measurements(side))

    def peak(self, limits: Limits) -> Judgement:
        """The judgement on the head's peak, by the medians of both sides."""
        peak_bytes = judgements.stored_peak(self.merged("head"))
        return judgements.compare_peak(peak_bytes, self.merged("base"), limits)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsGate:
    """What the verdicts on pairs go by; see `llama_perf.gate.blocks`."""

    limits: ProjectLimits = ()
    target_loss: float = TARGET_LOSS
    max_blocks: int = MAX_BLOCKS
    missing_fails: bool = True
    undecided_fails: bool = True

    def limits_of(self, row: RowSpec) -> Limits:
        """The limits of a row."""
        return judgements.limits_of(row, self.limits)

    def test(self, pairs: PairedRow) -> BlockTest | None:
        """The test of a row's blocks; None where there are too few to say anything."""
        if len(pairs.blocks) < MIN_BLOCKS:
            return None
        return block_test(
            pairs.blocks,
            min_loss=self.limits_of(pairs.row)["least_loss"],
            target_loss=self.target_loss,
            max_blocks=self.max_blocks,
        )

    def needs_block(self, pairs: PairedRow) -> bool:
        """Whether the next block may change the verdict."""
        test = self.test(pairs)
        if pairs.missed is not None or len(pairs.blocks) >= self.max_blocks:
            return False
        return test is None or test.decision is Decision.UNDECIDED

    def compare(self, pairs: PairedRow) -> tuple[RowResult, Comparison]:
        """The head's result and the verdict on a row."""
        if pairs.missed is not None:
            return self._not_measured(pairs, *pairs.missed)
        test = self.test(pairs)
        assert test is not None, "a row that was measured has two blocks"
        limits = self.limits_of(pairs.row)
        # A stored row has no times of single tokens, and a result has.
        tokens = median_speed(pairs.measurements("head")).token_ns
        measurement = replace(pairs.merged("head").measurement, token_ns=tokens)
        result = replace(pairs.results["head"][0], measurement=measurement)
        speed, peak = self._speed(pairs, test), pairs.peak(limits)
        base = pairs.merged("base")
        judged = replace(
            judge(result, base, speed, peak, limits),
            change_interval=test.change_interval,
            pairs=2 * test.blocks,
            before=base.before,
            processes=pairs.processes("head"),
        )
        if judged.verdict is Verdict.UNDECIDED and not self.undecided_fails:
            judged = replace(judged, failed=False)
        return result, judged

    def _speed(self, pairs: PairedRow, test: BlockTest) -> Judgement:
        before = geometric_mean(one.tok_s for one in pairs.measurements("base"))
        now = before * math.exp(-test.loss)
        limit = as_share(test.limit)
        change = judgements.metric_change(TOK_S.title, before, now, limit)
        reason = f"{judgements.describe(change)}; {described(test)}, {pairs.way}"
        if pairs.disturbed:
            reason += f"; disturbed blocks, measured again: {pairs.disturbed}"
        undecided = test.decision is Decision.UNDECIDED
        if undecided:
            reason += f"; a loss of {self.target_loss:.1%} is not excluded"
        return Judgement(
            changes=(replace(change, worse=test.decision is Decision.SLOWER),),
            reason=reason,
            faster=test.decision is Decision.FASTER,
            undecided=undecided,
            minimum_detectable=test.minimum_detectable,
        )

    def _not_measured(
        self, pairs: PairedRow, side: str, result: RowResult
    ) -> tuple[RowResult, Comparison]:
        verdict, failed = Verdict.INVALID, True
        if result.status is Status.NOT_RUN:
            verdict, failed = Verdict.NOT_RUN, bool(pairs.measurements("base"))
            if side == "base" and pairs.measurements("head"):
                verdict, failed = Verdict.NO_BASELINE, self.missing_fails
        reason = f"{side}: {result.reason}"
        # The base may be of a revision that names rows otherwise.
        shown = replace(result, id=pairs.row.id, row=pairs.row, reason=reason)
        return shown, Comparison(
            id=pairs.row.id, verdict=verdict, reason=reason, failed=failed
        )


def described(test: BlockTest) -> str:
    """The interval of a change in words, and the number of pairs."""
    low, high = test.change_interval
    return f"95 %: {low:+.1%} to {high:+.1%}, {2 * test.blocks} pairs"


def change_in_words(test: BlockTest) -> str:
    """A change with its interval, and the number of pairs."""
    return f"{test.change:+.1%} ({described(test)})"


def overall(tests: Sequence[BlockTest]) -> str:
    """The mean change of several rows in words, with its interval."""
    loss = sum(test.loss for test in tests) / len(tests)
    halves = [(test.interval[1] - test.interval[0]) / 2 for test in tests]
    half = math.hypot(*halves) / len(tests)
    low, high = math.expm1(-loss - half), math.expm1(-loss + half)
    return (
        f"{math.expm1(-loss):+.1%} (95 %: {low:+.1%} to {high:+.1%}), the mean of"
        f" {len(tests)} rows"
    )
