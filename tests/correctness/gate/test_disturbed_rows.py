"""Verdicts on rows that were disturbed, with figures made up."""

import re
from dataclasses import replace
from typing import Any

import pytest

from llama_perf.gate import verdict
from llama_perf.gate.blocks import Block, block_test
from llama_perf.gate.evidence import Confirmation, PairsTest, Trial
from llama_perf.gate.review import warnings
from llama_perf.gate.speed_baseline import SpeedBaseline
from llama_perf.report.text import as_text
from llama_perf.results.measurement import SystemLoad
from llama_perf.results.run import Comparison, Verdict
from tests.correctness.support.record_samples import (
    ALIKE,
    CPU_ROW,
    CUDA_ROW,
    INT8_CPU,
    MEASUREMENT,
    baseline_of,
    baseline_of_processes,
    compare,
    measured,
    report_of,
)

SAME, FASTER, SLOWER = Verdict.SAME, Verdict.FASTER, Verdict.SLOWER
UNDECIDED, LARGER = Verdict.UNDECIDED, Verdict.LARGER


def load(other_cores: float, steal: float | None = 0.0, cores: int = 2) -> SystemLoad:
    return SystemLoad(
        seconds=1.0,
        cores=cores,
        threads=2,
        other_cores=other_cores,
        steal_share=steal,
        load_average=2.4,
    )


BUSY: dict[str, Any] = {"load": load(0.9, 0.03)}
QUIET: dict[str, Any] = {"load": load(0.1, 0.01)}
WORDS = "other processes took 0.9 of 2 cores, steal 3%, load average 2.4"
STORED = baseline_of_processes({CPU_ROW: ALIKE})
ONE_PROCESS = baseline_of(measured())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load": None}, ""),
        (QUIET, ""),
        (BUSY, WORDS),
        # More than a tenth of the row's two cores.
        ({"load": load(0.2, None)}, ""),
        ({"load": load(0.21, None)}, "other processes took 0.2 of 2 cores, load ave"),
        # Two of four cores are left for its two threads.
        ({"load": load(2.0, cores=4)}, ""),
        ({"load": load(2.3, cores=4)}, "other processes took 2.3 of 4 cores, steal 0%"),
        ({"load": load(0.0, 0.05)}, ""),
        ({"load": load(0.0, 0.06)}, "other processes took 0.0 of 2 cores, steal 6%"),
        ({"device_bandwidth_gb_s": 16.1}, ""),
        ({"device_bandwidth_gb_s": 13.0}, "bandwidth 65% of the baseline's"),
        (
            {"device_bandwidth_gb_s": 13.0, **QUIET},
            "bandwidth 65% of the baseline's, other processes took 0.1 of 2 cores",
        ),
        ({"neighbours": ("process 7 (x)",)}, "other processes on the GPU: process 7"),
    ],
)
def test_a_row_that_looks_faster_is_no_faster_where_it_was_disturbed(
    changes: dict[str, Any], words: str
) -> None:
    bandwidth = changes.get("device_bandwidth_gb_s", 20.0)
    for stored in (STORED, ONE_PROCESS):
        comparison = compare(measured(tok_s=200.0, **changes), stored)
        assert comparison.verdict is (SAME if words else FASTER)
        assert not comparison.failed
        looks = f"; looks faster, but was disturbed: {words}"
        assert (looks in comparison.reason) is bool(words)
        assert comparison.bandwidth_share == pytest.approx(bandwidth / 20)


@pytest.mark.parametrize(("changes", "expected"), [(BUSY, UNDECIDED), (QUIET, SLOWER)])
def test_a_fixed_limit_decides_nothing_on_a_disturbed_row(
    changes: dict[str, Any], expected: Verdict
) -> None:
    slow = measured(tok_s=60.0, **changes)
    comparison = compare(slow, ONE_PROCESS)
    assert (comparison.verdict, comparison.failed) == (expected, True)
    end = f"noise is estimated; looks slower, but was disturbed: {WORDS}"
    assert comparison.reason.endswith(end) is (changes is BUSY)
    worse = [change.metric for change in comparison.changes if change.worse]
    assert bool(worse) is (changes is QUIET)
    allowed = compare(slow, ONE_PROCESS, undecided_fails=False)
    assert allowed.failed is (changes is QUIET)


def trials(*changes: dict[str, Any], tok_s: float = 60.0) -> list[Trial]:
    return [Trial(row=measured(tok_s=tok_s, **one)) for one in changes]


@pytest.mark.parametrize(
    ("own", "fresh", "expected", "words"),
    [
        (BUSY, None, UNDECIDED, "; looks slower; confirmation was off"),
        (BUSY, trials(*[QUIET] * 5), SLOWER, "; confirmed by 5 fresh processes: "),
        (BUSY, trials(*[QUIET] * 5, tok_s=100.0), SAME, "; not confirmed by 5 fresh"),
        (
            QUIET,
            trials(QUIET, BUSY, QUIET, BUSY, QUIET),
            UNDECIDED,
            "; looks slower; 3 of 5 fresh processes finished; disturbed, so they do not"
            f" count: 2 of 5 ({WORDS})",
        ),
        # Not even where they look as fast as before.
        (QUIET, trials(*[BUSY] * 5, tok_s=100.0), UNDECIDED, "; 0 of 5 fresh proc"),
    ],
)
def test_only_undisturbed_processes_confirm(
    own: dict[str, Any], fresh: list[Trial] | None, expected: Verdict, words: str
) -> None:
    comparison = compare(measured(tok_s=60.0, **own), STORED, fresh=fresh)
    assert comparison.verdict is expected
    assert words in comparison.reason
    assert comparison.suspicious


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.3, SLOWER), (0.0, SAME), (-0.3, FASTER)]
)
def test_pairs_decide_on_a_disturbed_row_as_on_any_other(
    loss: float, expected: Verdict
) -> None:
    blocks = [Block(base_first=loss, head_first=loss)] * 4
    test = block_test(blocks, min_loss=0.01, target_loss=0.05, max_blocks=10)
    pairs = PairsTest(test=test, words="pairs", base=MEASUREMENT, head=MEASUREMENT)
    prepared = SpeedBaseline(STORED, by_pairs=[CPU_ROW.id])
    slow, confirmation = measured(tok_s=60.0, **BUSY), Confirmation(pairs=pairs)
    comparison = verdict.compare(slow, prepared, confirmation=confirmation)
    assert comparison.verdict is expected
    assert "but was disturbed" not in comparison.reason


def test_a_ratio_to_a_disturbed_row_makes_none_faster() -> None:
    stored = baseline_of_processes(
        {CPU_ROW: ALIKE, INT8_CPU: [2 * tok_s for tok_s in ALIKE]}
    )
    row = measured(INT8_CPU, tok_s=200.0)
    for changes, expected in ((QUIET, FASTER), (BUSY, SAME)):
        slow = measured(tok_s=50.0, **changes)
        comparison = compare(row, stored, unquantized=slow)
        assert comparison.verdict is expected
        if changes is BUSY:
            words = f"but was disturbed: its unquantized row: {WORDS}"
            assert comparison.reason.endswith(words)


def test_what_depends_on_no_speed_fails_a_disturbed_row_as_ever() -> None:
    for metric in ("model_size_bytes", "peak_memory_bytes"):
        larger = measured(CPU_ROW, **{metric: 2 * 10**9}, **BUSY)
        comparison = compare(larger, ONE_PROCESS)
        assert (comparison.verdict, comparison.failed) == (LARGER, True)
    peaks = baseline_of_processes({CPU_ROW: [10**9] * 3}, "peak_memory_bytes")
    fresh = [Trial(row=measured(peak_memory_bytes=2 * 10**9, **BUSY))] * 5
    larger = measured(peak_memory_bytes=2 * 10**9, **BUSY)
    assert compare(larger, peaks, fresh=fresh).verdict is LARGER


def test_a_bandwidth_that_is_not_known_disturbs_nothing() -> None:
    unknown: dict[str, Any] = {"device_bandwidth_gb_s": None}
    for then, now in ((unknown, {}), ({}, unknown), ({}, {})):
        stored = baseline_of(measured(CUDA_ROW, **then))
        comparison = compare(measured(CUDA_ROW, tok_s=200.0, **now), stored)
        assert comparison.verdict is FASTER
        known = not then and not now
        assert comparison.bandwidth_share == (1.0 if known else None)


def test_rows_in_pairs_are_never_marked() -> None:
    result = measured(**BUSY, neighbours=("the other side",))
    comparison = Comparison(id=CPU_ROW.id, verdict=SAME, reason="", failed=False)
    for pairs, marked in ((None, True), (4, False)):
        compared = replace(comparison, pairs=pairs)
        text = as_text(report_of(result, comparisons=(compared,)))
        assert ("disturbed" in text) is marked
        assert ("SAME*" in text) is marked


def test_a_baseline_that_finds_only_large_losses_warns() -> None:
    for quiet in (STORED, ONE_PROCESS):
        assert list(warnings(quiet, {}, ids={CPU_ROW.id})) == []
    noisy = baseline_of_processes({CPU_ROW: (80.0, 90.0, 100.0, 110.0, 125.0)})
    assert list(warnings(noisy, {}, ids=())) == []
    row, remedies = warnings(noisy, {}, ids={CPU_ROW.id})
    pattern = r"without pairs: limit [\d.]+%, and a loss of ([\d.]+)% is found 9 times"
    found = re.search(pattern, row)
    assert row.startswith(f"warning: {CPU_ROW.id}: ")
    assert found
    assert float(found[1]) > 25
    assert "quieter machine" in remedies
    assert "max_new_tokens" in remedies
    assert "max_new_tokens" in remedies
