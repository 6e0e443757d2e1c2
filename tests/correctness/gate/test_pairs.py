"""Pairs of processes: their blocks decide, or a side that was not measured."""

import math
from collections.abc import Sequence

import pytest

from llama_perf.gate.blocks import Block, BlockTest
from llama_perf.gate.pairs import PairedRow, PairsGate, overall
from llama_perf.results.run import Comparison, Status, Verdict
from llama_perf.rows.limit_overrides import Limits
from tests.correctness.support.record_samples import CPU_ROW, GB, measured, unmeasured


def paired(*blocks: float, head_gb: Sequence[int] = (1,)) -> PairedRow:
    """A row with these shares of lost speed by block, and peaks of the head."""
    base = [measured(peak_memory_bytes=GB)]
    head = [measured(tok_s=90.0, peak_memory_bytes=gb * GB) for gb in head_gb]
    losses = [Block(*[-math.log1p(-share)] * 2) for share in blocks]
    results = {"base": base, "head": head}
    return PairedRow(row=CPU_ROW, results=results, blocks=losses, way="some way")


GATE = PairsGate()


def verdict(pairs: PairedRow, gate: PairsGate = GATE) -> Comparison:
    return gate.compare(pairs)[1]


CASES: list[tuple[list[float], Verdict, str]] = [
    (
        [0.12, 0.124, 0.118],
        Verdict.SLOWER,
        "tok/s 100.00 -> 87.93 (-12.1%, limit 7.2%); 95 %: -13.7% to -10.4%, 6 pairs,"
        " some way",
    ),
    ([-0.12, -0.124, -0.118], Verdict.FASTER, "tok/s 100.00 -> 112.07 (+12.1%, limit"),
    ([0.002, -0.003], Verdict.SAME, "within its limits: tok/s 100.00 -> 100.05 (+0.0%"),
    ([0.1, -0.1] * 5, Verdict.UNDECIDED, "; a loss of 5.0% is not excluded"),
]


@pytest.mark.parametrize(("blocks", "expected", "reason"), CASES)
def test_blocks_decide(blocks: list[float], expected: Verdict, reason: str) -> None:
    gate, pairs = PairsGate(), paired(*blocks)
    assert not gate.needs_block(pairs)
    shown, comparison = gate.compare(pairs)
    assert comparison.verdict is expected
    assert comparison.failed is (expected in {Verdict.SLOWER, Verdict.UNDECIDED})
    assert reason in comparison.reason
    assert comparison.pairs == 2 * len(blocks)
    assert comparison.change_interval is not None
    low, high = comparison.change_interval
    assert low < comparison.changes[0].change < high
    assert comparison.minimum_detectable is not None
    # The row shows what its process measured.
    assert shown.measurement is not None
    assert shown.measurement.tok_s == 90.0


def test_the_times_of_tokens_are_those_of_the_process_that_is_shown() -> None:
    pairs = paired(0.0, 0.0)
    pairs.results["head"] = [
        measured(tok_s=tok_s, token_ns=((round(1e9 / tok_s),),))
        for tok_s in (80.0, 90.0, 100.0)
    ]
    shown = PairsGate().compare(pairs)[0].measurement
    assert shown is not None
    assert (shown.tok_s, shown.token_ns) == (90.0, ((11_111_111,),))


def test_a_row_goes_on_until_it_is_decided_or_has_all_its_blocks() -> None:
    gate, undecided = PairsGate(), [0.1, -0.1] * 5
    assert gate.test(paired(0.2)) is None
    for count in (0, 1, 2, 7):
        assert gate.needs_block(paired(*undecided[:count]))
    assert not PairsGate(max_blocks=7).needs_block(paired(*undecided[:7]))
    broken = paired()
    broken.results["head"].append(unmeasured(Status.INVALID, "why"))
    assert not gate.needs_block(broken)


def test_an_undecided_row_passes_where_the_user_allows_it() -> None:
    comparison = verdict(paired(*[0.1, -0.1] * 5), PairsGate(undecided_fails=False))
    assert (comparison.verdict, comparison.failed) == (Verdict.UNDECIDED, False)


def test_a_users_least_loss_is_no_loss() -> None:
    gate = PairsGate(limits=(("*", Limits({"least_loss": 0.2})),))
    assert verdict(paired(0.12, 0.124, 0.118), gate).verdict is Verdict.UNDECIDED


def test_a_larger_model_fails() -> None:
    pairs = paired(0.0, 0.001)
    pairs.results["head"] = [measured(model_size_bytes=10**9)]
    assert verdict(pairs).verdict is Verdict.LARGER


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [((1, 3, 1), Verdict.SAME), ((2, 2, 1), Verdict.LARGER), ((2,), Verdict.LARGER)],
)
def test_the_median_peak_of_the_processes_counts(
    peaks: Sequence[int], expected: Verdict
) -> None:
    comparison = verdict(paired(0.0, 0.001, head_gb=peaks))
    assert comparison.verdict is expected
    assert not comparison.doubtful


@pytest.mark.parametrize(
    ("base", "head", "expected", "failed"),
    [
        (Status.NOT_RUN, Status.MEASURED, Verdict.NO_BASELINE, True),
        (Status.MEASURED, Status.NOT_RUN, Verdict.NOT_RUN, True),
        (Status.NOT_RUN, Status.NOT_RUN, Verdict.NOT_RUN, False),
        (Status.INVALID, Status.MEASURED, Verdict.INVALID, True),
        (Status.MEASURED, Status.INVALID, Verdict.INVALID, True),
    ],
)
def test_a_missing_row(
    base: Status, head: Status, expected: Verdict, failed: bool
) -> None:
    results = {
        side: [measured() if status is Status.MEASURED else unmeasured(status, "why")]
        for side, status in (("base", base), ("head", head))
    }
    pairs = PairedRow(row=CPU_ROW, results=results)
    shown, comparison = PairsGate().compare(pairs)
    assert (comparison.verdict, comparison.failed) == (expected, failed)
    side = "base" if base is not Status.MEASURED else "head"
    assert comparison.reason == f"{side}: why"
    assert shown.measurement is None
    if expected is Verdict.NO_BASELINE:
        assert not verdict(pairs, PairsGate(missing_fails=False)).failed


def test_the_mean_of_rows_is_known_better_than_each() -> None:
    tests = [PairsGate().test(paired(0.02, 0.021)) for _ in range(4)]
    known: list[BlockTest] = [test for test in tests if test is not None]
    assert overall(known) == "-2.1% (95 %: -3.4% to -0.7%), the mean of 4 rows"
    low, high = known[0].change_interval
    assert (low, high) == pytest.approx((-0.0472, 0.0071), abs=1e-3)
