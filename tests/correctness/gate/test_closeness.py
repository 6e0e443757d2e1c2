"""The verdict on a row that came less close to its unquantized twin, or closer."""

from dataclasses import replace
from typing import Any

import pytest

from llama_perf.gate.closeness import compare_closeness
from llama_perf.gate.judgements import limits_of
from llama_perf.results.baselines import BaselineRow
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Verdict
from llama_perf.rows.limit_overrides import Limits
from tests.correctness.support.record_samples import (
    CLOSENESS,
    CPU_ROW,
    INT8_CPU,
    baseline_of,
    chosen,
    close,
    compare,
    measured,
)

# By fixed limits, which hold for a baseline of one process: 25 % of the speed.
FASTER, SLOWER, SMALLER = {"tok_s": 200.0}, {"tok_s": 50.0}, {"peak_memory_bytes": 1}
FARTHER: dict[str, Any] = {"db": 10.5}
DB = "closeness to the twin (dB) 12.00 -> 10.50 (-1.50 dB, limit 1 dB)"


def moved(figures: dict[str, Any], **changes: Any) -> Any:
    """A row with other figures and another closeness."""
    return measured(INT8_CPU, **figures, closeness=replace(CLOSENESS, **changes))


@pytest.mark.parametrize(
    ("figures", "otherwise"),
    [
        ({}, "SAME"),
        (FASTER, "FASTER"),
        (SMALLER, "SMALLER"),
        (SLOWER, "SLOWER"),
        ({"model_size_bytes": 600_000_000}, "LARGER"),
    ],
)
def test_a_row_that_lost_closeness_is_worse_whatever_else_moved(
    figures: dict[str, Any], otherwise: str
) -> None:
    then = baseline_of(close())
    same = compare(moved(figures), then)
    assert same.verdict.value == otherwise
    worse = compare(moved(figures, **FARTHER), then)
    assert (worse.verdict, worse.failed) == (Verdict.WORSE, True)
    assert worse.reason.startswith(f"{DB}; tok/s 100.00 -> ")
    if same.failed:
        # What failed beside it is said as well.
        assert same.reason.split("; ")[0] in worse.reason


@pytest.mark.parametrize(
    ("changes", "worse"),
    [
        ({"db": 11.1}, None),
        ({"db": 10.9}, "closeness to the twin (dB) 12.00 -> 10.90"),
        ({"kl_nats": 0.32}, None),
        ({"kl_nats": 0.36}, "divergence from the twin (nats) 0.30000 -> 0.36000 (+20"),
        ({"perplexity": 20.3}, None),
        ({"perplexity": 21.0}, "perplexity 20.00 -> 21.00 (+5.0%, limit 2.0%)"),
        # Reported: a hair decides on a token.
        ({"top1_share": 0.3, "same_greedy_tokens": 0}, None),
        # The twin's own perplexity says nothing of the row.
        ({"twin_perplexity": 10.0}, None),
    ],
)
def test_each_figure_has_its_limit_and_two_are_only_reported(
    changes: dict[str, Any], worse: str | None
) -> None:
    comparison = compare(close(**changes), baseline_of(close()))
    expected = Verdict.SAME if worse is None else Verdict.WORSE
    assert comparison.verdict is expected
    if worse is not None:
        assert comparison.reason.startswith(worse)
    titles = [change.metric for change in comparison.changes]
    assert {"share of the twin's top-1 tokens", "perplexity"} <= set(titles)


def test_little_divergence_and_much_closeness_have_room_for_last_bits() -> None:
    near: dict[str, Any] = {"db": 110.0, "kl_nats": 1e-9}
    then = baseline_of(close(**near))
    for db, kl_nats, verdict in (
        (62.0, 1e-4, Verdict.SAME),
        (59.0, 1e-9, Verdict.WORSE),
        (110.0, 2e-3, Verdict.WORSE),
    ):
        now = close(**(near | {"db": db, "kl_nats": kl_nats}))
        assert compare(now, then).verdict is verdict, (db, kl_nats)
    # Noise above the signal has a negative dB, which is no share of anything.
    below = baseline_of(close(db=-2.0))
    assert compare(close(db=-2.9), below).verdict is Verdict.SAME
    assert compare(close(db=-3.1), below).verdict is Verdict.WORSE


def test_a_row_or_a_project_sets_its_own_limits() -> None:
    then, now = baseline_of(close()), close(**FARTHER)
    own = Limits({"closeness_db": 2.0})
    loose = replace(now, row=replace(now.row, limits=own))
    assert compare(loose, then).verdict is Verdict.SAME
    project = [("*int8wo*", own)]
    assert compare(now, then, project=project).verdict is Verdict.SAME
    assert compare(now, then, project=[("*fp6*", own)]).verdict is Verdict.WORSE


@pytest.mark.parametrize(
    ("fields", "is_drawn"),
    [
        ({"quantization": "int8wo"}, False),
        ({"quantization": "uintx-4-64"}, False),
        ({"quantization": "int8dq"}, True),
        ({"quantization": "float8dq-row"}, True),
        ({"quantization": "autoquant"}, True),
        # A config may round anything.
        ({"quantization": "torchao:Int8WeightOnlyConfig()"}, True),
        ({"kv_cache_quantization": True}, True),
        ({"quantization": "int4wo-64", "kv_cache_quantization": "fp8"}, True),
    ],
)
def test_rows_that_round_as_they_run_have_wider_limits(
    fields: dict[str, Any], is_drawn: bool
) -> None:
    row = replace(CPU_ROW, **fields)
    limits = limits_of(row)
    assert limits["closeness_db"] == (2.0 if is_drawn else 1.0)
    assert limits["closeness_kl"] == (0.4 if is_drawn else 0.1)
    assert limits["closeness_perplexity"] == (0.06 if is_drawn else 0.02)
    verdict = compare(close(row, db=10.5), baseline_of(close(row))).verdict
    assert verdict is (Verdict.SAME if is_drawn else Verdict.WORSE)


OTHER_TEXT = "another text: built-in:0123456789ab in the baseline, mine.txt:77 now"


@pytest.mark.parametrize(
    ("then", "now", "unjudged"),
    [
        (CLOSENESS, {"text": "mine.txt:77"}, OTHER_TEXT),
        (CLOSENESS, {"tokens": 9}, "another number of tokens: 470 in the baseline, 9"),
        (None, {}, "the baseline has none"),
    ],
)
def test_what_is_not_comparable_is_said_and_not_judged(
    then: Any, now: dict[str, Any], unjudged: str
) -> None:
    before = baseline_of(measured(INT8_CPU, closeness=then))
    comparison = compare(close(db=-5.0, **now), before)
    assert (comparison.verdict, comparison.failed) == (Verdict.SAME, False)
    assert f"closeness is not judged: {unjudged}" in comparison.reason
    assert str(comparison.unjudged_closeness).startswith(unjudged)
    assert not any("twin" in change.metric for change in comparison.changes)


def test_a_run_without_closeness_says_nothing_of_it() -> None:
    plain = compare(measured(INT8_CPU), baseline_of(measured(INT8_CPU)))
    assert compare(measured(INT8_CPU), baseline_of(close())).reason == plain.reason


def test_other_formats_of_autoquant_may_come_less_close() -> None:
    then = baseline_of(of_autoquant("none"))
    for choice, verdict in (("int8wo", Verdict.SAME), ("none", Verdict.WORSE)):
        comparison = compare(of_autoquant(choice, db=9.0), then)
        assert comparison.verdict is verdict
    assert compare(of_autoquant("int8wo"), then).unjudged_closeness == (
        "autoquant chose int8wo instead of none for 128 x 64"
    )


def of_autoquant(choice: str, **changes: Any) -> Any:
    row = replace(CPU_ROW, quantization="autoquant")
    closeness = replace(CLOSENESS, **changes)
    return measured(row, closeness=closeness, autoquant=(chosen(choice),))


def test_a_closer_row_keeps_the_verdict_on_its_speed() -> None:
    then = baseline_of(close())
    words = "closer than the baseline: closeness to the twin (dB) 12.00 -> 14.00 (+2.00"
    for figures, verdict in (({}, "SAME"), (FASTER, "FASTER"), (SMALLER, "SMALLER")):
        comparison = compare(moved(figures, db=14.0), then)
        assert (comparison.verdict.value, comparison.failed) == (verdict, False)
        assert words in comparison.reason
    mixed = compare(close(db=14.0, perplexity=30.0), then)
    assert mixed.verdict is Verdict.WORSE
    assert "closer" not in mixed.reason


def stored_row(**changes: Any) -> BaselineRow:
    (row,) = baseline_of(close(**changes)).rows
    return row


def test_a_closeness_without_a_speed_is_judged_by_the_same_limits() -> None:
    stored = stored_row()
    same = compare_closeness(INT8_CPU, CLOSENESS, stored, weights="synthetic")
    assert (same.verdict, same.failed) == (Verdict.SAME, False)
    assert same.reason == (
        "within its limits: closeness to the twin (dB) 12.00 -> 12.00 (+0.00 dB, limit"
        " 1 dB)"
    )
    worse = compare_closeness(INT8_CPU, replace(CLOSENESS, **FARTHER), stored)
    assert (worse.verdict, worse.failed, worse.reason) == (Verdict.WORSE, True, DB)
    project = (("*", Limits({"closeness_db": 2.0})),)
    loose = compare_closeness(
        INT8_CPU, replace(CLOSENESS, **FARTHER), stored, project=project
    )
    assert loose.verdict is Verdict.SAME
    closer = compare_closeness(INT8_CPU, replace(CLOSENESS, db=13.5), stored)
    assert closer.reason.startswith("closer than the baseline: closeness to the twin")


@pytest.mark.parametrize(
    ("stored", "changes", "verdict", "failed", "reason"),
    [
        (None, {}, "NO_BASELINE", True, "the baseline of this device has no closeness"),
        (stored_row(), {"weights": "gguf:a"}, "INCOMPARABLE", True, "other weights: "),
        (
            replace(stored_row(), fingerprint="0" * 16),
            {},
            "INCOMPARABLE",
            True,
            "the row changed",
        ),
        (stored_row(text="other"), {}, "INCOMPARABLE", False, "another text: other in"),
    ],
)
def test_a_closeness_that_cannot_be_compared(
    stored: BaselineRow | None,
    changes: dict[str, Any],
    verdict: str,
    failed: bool,
    reason: str,
) -> None:
    comparison = compare_closeness(INT8_CPU, CLOSENESS, stored, **changes)
    assert (comparison.verdict.value, comparison.failed) == (verdict, failed)
    assert comparison.reason.startswith(reason)
    if stored is None:
        passes = compare_closeness(INT8_CPU, CLOSENESS, None, missing_fails=False)
        assert not passes.failed


def test_the_row_without_closeness_in_a_baseline_is_no_baseline() -> None:
    (row,) = baseline_of(measured(INT8_CPU)).rows
    assert isinstance(row.measurement, Measurement)
    comparison = compare_closeness(INT8_CPU, CLOSENESS, row)
    assert comparison.verdict is Verdict.NO_BASELINE
