"""Runs made up for the tests of HTML pages."""

from dataclasses import replace
from itertools import product
from typing import Any

from llama_perf.results.measurement import MemoryParts, OperatorTime, StepWork
from llama_perf.results.run import Comparison, MetricChange, Report, Status, Verdict
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.record_samples import (
    CLOSENESS,
    CPU_ROW,
    ENVIRONMENT,
    measured,
    report_of,
    unmeasured,
)

ROWS = 86
"""Of the page that most tests open."""
HOSTILE = """</script><script>alert(1)</script> & "quoted" 'too' \u202eright to left"""
_IN_A_NAME = "<script>alert(1)</script>&\"'\u202e"
AGAIN = ("llama-perf", "run", "--compare")
_SCHEMES = (None, "int8wo", "int4wo-64", "float8wo")
_MODELS = ("Llama-2-7b-chat-hf", "Llama-3.1-8B")
_FAILS = {Verdict.SLOWER, Verdict.LARGER, Verdict.UNDECIDED}
# Most rows of a run are SAME.
_VERDICTS = (
    *(Verdict.SLOWER, Verdict.SAME, Verdict.FASTER, Verdict.SAME, Verdict.LARGER),
    *(Verdict.SAME, Verdict.SMALLER, Verdict.UNDECIDED, *(Verdict.SAME,) * 12),
)


def many_rows(number: int, **changes: Any) -> Report:
    """A run of so many rows with all kinds of verdicts; every tenth was not run."""
    results, comparisons = [], []
    for place, row in zip(range(number), _rows(), strict=False):
        if place % 10 == 9:
            results.append(unmeasured(Status.NOT_RUN, "no card", row))
            continue
        speed = 50.0 + place * 37 % 101 + place / 1000
        step = StepWork(
            calls=90, ms=9, operators=(OperatorTime(name="matmul", calls=60, ms=8.0),)
        )
        parts = MemoryParts(weights_bytes=500_000_000, cache_bytes=100_000_000)
        figures: dict[str, Any] = {
            "step": step,
            "memory": parts,
            "closeness_db": 20.0 + place % 30,
        }
        if row.quantization == "int8wo":
            figures["closeness"] = CLOSENESS
        result = measured(row, tok_s=speed, **figures)
        results.append(result)
        verdict = _VERDICTS[place % len(_VERDICTS)]
        comparisons.append(_comparison(row, verdict, speed))
    known: dict[str, Any] = {"comparisons": tuple(comparisons), "again": AGAIN}
    return report_of(*results, **known | changes)


def _rows() -> Any:
    """Rows without end, of two models, some schemes and both kinds of kernels."""
    for tokens in range(100, 1000):
        for model, scheme, kernels in product(_MODELS, _SCHEMES, ("native", "torchao")):
            if kernels == "torchao" and scheme is None:
                continue
            row = replace(CPU_ROW, model=model, quantization=scheme, kernels=kernels)
            yield replace(row, max_new_tokens=tokens)


def _comparison(row: RowSpec, verdict: Verdict, speed: float) -> Comparison:
    change = {Verdict.SLOWER: -0.07, Verdict.FASTER: 0.05}.get(verdict, 0.001)
    before = speed / (1 + change)
    moved = MetricChange(
        metric="tok/s",
        baseline=before,
        current=speed,
        change=change,
        limit=0.02,
        worse=verdict is Verdict.SLOWER,
    )
    return Comparison(
        id=row.id,
        verdict=verdict,
        reason=f"tok/s {before:.2f} -> {speed:.2f} ({change:+.1%}, limit 2.0%)",
        failed=verdict in _FAILS,
        changes=(moved,),
        why=("matmul: 7.2 ms -> 8.0 ms",) if verdict is Verdict.SLOWER else (),
        minimum_detectable=0.03,
    )


def hostile_run() -> Report:
    """A run in which every text that others write is HOSTILE."""
    failed = measured(replace(CPU_ROW, model=f"/models/{_IN_A_NAME}"), weights=HOSTILE)
    refused = unmeasured(Status.NOT_RUN, HOSTILE, CPU_ROW)
    judged = Comparison(
        id=failed.id,
        verdict=Verdict.SLOWER,
        reason=HOSTILE,
        failed=True,
        why=(HOSTILE,),
    )
    return report_of(
        *(failed, refused),
        comparisons=(judged,),
        again=(*AGAIN, HOSTILE),
        baseline_source=HOSTILE,
        environment_changes=(HOSTILE,),
        environment=replace(ENVIRONMENT, device_name=HOSTILE),
        note=HOSTILE,
    )
