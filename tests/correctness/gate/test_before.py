"""What a row was compared with, and the processes that decided on it, in results."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_perf.gate import verdict
from llama_perf.gate.blocks import Block, block_test
from llama_perf.gate.evidence import Confirmation, PairsTest, Trial
from llama_perf.gate.pairs import PairedRow, PairsGate
from llama_perf.gate.speed_baseline import SpeedBaseline
from llama_perf.results.measurement import (
    CardState,
    MemoryParts,
    OperatorTime,
    StepWork,
)
from llama_perf.results.processes import samples_of
from llama_perf.results.run import Before, RowResult, Status, Verdict, read_report
from llama_perf.strict_json import to_json
from tests.correctness.support.record_samples import (
    ALIKE,
    CPU_ROW,
    ENVIRONMENT,
    MEASUREMENT,
    baseline_of,
    baseline_of_processes,
    compare,
    measured,
    report_of,
    unmeasured,
)

STEP = StepWork(
    calls=30, ms=2.0, operators=(OperatorTime(name="mm", calls=20, ms=1.5),)
)
MEMORY = MemoryParts(weights_bytes=400_000_000, cache_bytes=100_000_000)
STORED = baseline_of_processes({CPU_ROW: ALIKE}, step=STEP, memory=MEMORY)
BEFORE = STORED.rows[0].before
ELSEWHERE = replace(ENVIRONMENT, device_key="another")
BUSY: dict[str, Any] = {"neighbours": ("other",)}


def of(*results: RowResult) -> list[Any]:
    return [samples_of(one.measurement) for one in results if one.measurement]


def test_before_has_all_processes_and_what_the_middle_one_measured() -> None:
    assert [one.tok_s for one in BEFORE.processes] == list(ALIKE)
    assert BEFORE.measurement == STORED.rows[0].measurement
    assert (BEFORE.measurement.step, BEFORE.measurement.memory) == (STEP, MEMORY)


def test_before_lacks_what_takes_most_room() -> None:
    large: dict[str, Any] = {"card": (CardState(clock_mhz=1),), "token_ns": ((1, 2),)}
    (row,) = baseline_of(measured(**large)).rows
    assert row.before.measurement == replace(row.measurement, card=None, token_ns=None)
    assert row.before.processes == (samples_of(row.measurement),)


@pytest.mark.parametrize(
    ("now", "environment", "expected"),
    [
        (measured(), None, Verdict.SAME),
        (measured(tok_s=200.0), None, Verdict.FASTER),
        (measured(tok_s=50.0), None, Verdict.UNDECIDED),
        (measured(model_size_bytes=10**9), None, Verdict.LARGER),
        (measured(tok_s=50.0), ELSEWHERE, Verdict.INCOMPARABLE),
    ],
)
def test_whatever_is_compared_has_what_it_was_compared_with(
    now: RowResult, environment: Any, expected: Verdict
) -> None:
    comparison = compare(now, STORED, environment=environment)
    assert comparison.verdict is expected
    assert comparison.before == BEFORE
    assert comparison.processes is None


@pytest.mark.parametrize(
    "now",
    [
        measured(weights="others"),
        measured(replace(CPU_ROW, max_new_tokens=7)),
        replace(measured(replace(CPU_ROW, max_new_tokens=7)), id=CPU_ROW.id),
        unmeasured(Status.NOT_RUN, "why"),
        unmeasured(Status.INVALID, "why"),
    ],
)
def test_what_is_not_compared_has_nothing_before(now: RowResult) -> None:
    assert compare(now, STORED).before is None


@pytest.mark.parametrize(
    ("now", "deciding"),
    [
        # Disturbed processes do not count for the speed, and do for the peak.
        (measured(tok_s=60.0), slice(3, None)),
        (measured(peak_memory_bytes=3 * 10**9), slice(None)),
    ],
)
def test_fresh_processes_that_decided_are_kept(now: RowResult, deciding: slice) -> None:
    stored = baseline_of_processes({CPU_ROW: ALIKE}, peak_memory_bytes=10**9)
    busy = [measured(tok_s=10.0 + number, **BUSY) for number in range(3)]
    quiet = [measured(tok_s=60.0 + number) for number in range(5)]
    fresh = [Trial(row=one) for one in (*busy, *quiet)]
    comparison = compare(now, stored, fresh=fresh)
    assert comparison.doubtful
    assert comparison.processes == tuple(of(*busy, *quiet)[deciding])
    assert comparison.before == stored.rows[0].before


BROKEN = Trial(row=unmeasured(Status.INVALID, "why"))


@pytest.mark.parametrize("fresh", [[], [BROKEN]])
def test_processes_without_figures_decided_nothing(fresh: Sequence[Trial]) -> None:
    assert compare(measured(tok_s=60.0), STORED, fresh=fresh).processes is None


def test_pairs_with_the_baselines_commit_leave_the_processes_of_the_head() -> None:
    blocks = [Block(base_first=0.3, head_first=0.3)] * 4
    heads = tuple(of(measured(tok_s=70.0), measured(tok_s=71.0)))
    pairs = PairsTest(
        test=block_test(blocks, min_loss=0.01, target_loss=0.05, max_blocks=10),
        words="pairs",
        base=MEASUREMENT,
        head=MEASUREMENT,
        processes=heads,
    )
    prepared = SpeedBaseline(STORED, by_pairs=[CPU_ROW.id])
    confirmation = Confirmation(pairs=pairs, fresh=[Trial(row=measured())])
    slow = measured(tok_s=60.0)
    comparison = verdict.compare(slow, prepared, confirmation=confirmation)
    assert comparison.verdict is Verdict.SLOWER
    assert (comparison.before, comparison.processes) == (BEFORE, heads)


def test_both_sides_of_pairs_are_kept_and_read_again(tmp_path: Path) -> None:
    base = [measured(tok_s=tok_s, step=STEP) for tok_s in (100.0, 103.0, 101.0)]
    head = [measured(tok_s=tok_s) for tok_s in (90.0, 92.0, 91.0)]
    results = {"base": base, "head": head}
    blocks = [Block(base_first=0.1, head_first=0.1)] * 3
    pairs = PairedRow(row=CPU_ROW, results=results, blocks=blocks, way="some way")
    result, comparison = PairsGate().compare(pairs)
    middle = base[2].measurement
    assert middle is not None
    assert comparison.before == Before(measurement=middle, processes=tuple(of(*base)))
    assert comparison.processes == tuple(of(*head))
    assert result.measurement == head[2].measurement
    path, report = tmp_path / "run.json", report_of(result, comparisons=(comparison,))
    path.write_text(to_json(report), encoding="utf-8")
    assert read_report(path).comparisons[0].before == comparison.before
