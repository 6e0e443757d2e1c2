"""`python -m scripts.studies.made_up_run FILE`: results of a card that does not exist.

They show what reports look like where no card is at hand. Every figure is made up,
which the device's name and the report's note say. The rows are those of the sets
`reference` and `published`; with more rows their batch sizes and lengths vary. The
gate judges them against a made-up baseline, and there is a row of each verdict: more
kinds of evidence than one real run has.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from llama_perf.errors import SpecError
from llama_perf.files import check_writable, write_atomically
from llama_perf.gate import verdict
from llama_perf.gate.blocks import Block
from llama_perf.gate.evidence import Confirmation, Trial
from llama_perf.gate.pairs import PairedRow, PairsGate
from llama_perf.gate.speed_baseline import SpeedBaseline
from llama_perf.results.baselines import Baseline, BaselineRow, baseline_row
from llama_perf.results.processes import ProcessSamples
from llama_perf.results.run import (
    Before,
    Comparison,
    Environment,
    Report,
    RowResult,
    Status,
    Verdict,
)
from llama_perf.rows.selection import load_set
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import to_json
from scripts.studies.made_up_figures import CEILING_GB_S, UNCHANGED, Change, measurement

NOTE = (
    "All figures are made up: scripts/studies/made_up_run.py computed them for a card"
    " that does not exist. They say nothing about any device."
)
_PROCESSES = range(1, 6)
_ENVIRONMENT = Environment(
    device_key="made-up-card",
    device_name="Made-up card (synthetic figures)",
    device_memory_bytes=96 * 2**30,
    threads=16,
    driver="580.0",
    cuda="13.0",
    platform="Linux 6 x86_64",
    python="3.12.3",
    torch="2.13.0",
    torchao="0.18.0",
    triton="3.7.0",
    llama_perf="0.1.0",
    commit="bbbbbbbbbbbb",
    float32_matmul_precision="highest",
    device_uuid="made-up",
)
_THEN = replace(
    _ENVIRONMENT,
    commit="aaaaaaaaaaaa",
    torch="2.12.1",
    triton="3.6.0",
    platform="Linux 5 x86_64",
)
_VARIATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"batch_size": 2},
    {"batch_size": 4},
    {"batch_size": 8},
    {"prompt_length": 128},
    {"prompt_length": 512},
    {"max_new_tokens": 100},
    {"batch_size": 8, "prompt_length": 128},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Story:
    """What happened to a row since the baseline.

    `evidence` is what decided on it beside its own process. A `verdict` is that of a
    run that knows more than the gate is told here. `problem` says why the row was not
    measured.
    """

    then: Change = UNCHANGED
    now: Change = UNCHANGED
    evidence: str = ""
    verdict: Verdict | None = None
    is_known: bool = True
    problem: str = ""


_FASTER = _Story(now=Change(time=-0.08))
_LARGER = _Story(now=Change(peak=0.035), evidence="fresh")
_SMALLER = _Story(then=Change(peak=0.03))
# By the row's number among those of both sets.
_STORIES = {
    1: _FASTER,
    # It got faster by getting worse.
    2: _Story(now=Change(time=-0.11, closeness_db=-6.5)),
    4: _Story(now=Change(time=0.09), evidence="fresh"),
    8: _FASTER,
    9: _Story(now=Change(time=0.043), evidence="pairs"),
    11: _LARGER,
    10: _Story(now=Change(closeness_db=1.8)),
    12: _Story(is_known=False),
    14: _Story(now=Change(time=-0.05), evidence="pairs"),
    16: _SMALLER,
    20: _Story(evidence="pairs"),
    26: _FASTER,
    30: _Story(now=Change(neighbours=("python, 1024 MB",))),
    33: _Story(now=Change(time=0.06)),
    39: _Story(now=Change(time=0.06, closeness_db=-1.1), evidence="fresh"),
    40: _Story(verdict=Verdict.INCOMPARABLE),
    41: _Story(now=Change(peak=0.02), evidence="fresh", verdict=Verdict.ALREADY_LARGER),
    45: _Story(evidence="pairs"),
    47: _Story(now=Change(time=0.21), evidence="fresh"),
    48: _Story(is_known=False),
    52: _Story(problem="values: signal to noise 2.1 dB; allowed: 14.0 dB or more"),
    54: _Story(now=Change(time=0.045), evidence="scattered pairs"),
    58: _Story(now=Change(time=0.05), evidence="fresh", verdict=Verdict.ALREADY_SLOWER),
    60: _Story(now=Change(time=0.06), evidence="pairs"),
    62: _FASTER,
    66: _LARGER,
    69: _SMALLER,
    77: _Story(
        verdict=Verdict.NOT_RUN,
        is_known=False,
        problem="no kernel for groups of 8 weights on this card",
    ),
    85: _Story(verdict=Verdict.NOT_RUN, problem="no kernel for sparse-marlin"),
}
_USUAL = _Story()


def rows(count: int) -> list[RowSpec]:
    """So many rows: those of both sets, and then the same with other lengths."""
    basic = [*load_set("reference"), *load_set("published")]
    every = (replace(row, **fields) for fields in _VARIATIONS for row in basic)
    chosen = list(islice(every, count))
    if len(chosen) < count or not chosen:
        most = len(_VARIATIONS) * len(basic)
        raise SystemExit(f"--rows {count}: allowed: 1 to {most}")
    return chosen


def made_up_report(count: int = 86) -> Report:
    """The results of so many rows, the same each time."""
    chosen = rows(count)
    stories = dict(zip(chosen, _stories(), strict=False))
    stored = [_stored(row, story) for row, story in stories.items() if story.is_known]
    baseline = Baseline(
        recorded="2026-01-01T00:00:00+00:00", environment=_THEN, rows=tuple(stored)
    )
    speeds = SpeedBaseline(baseline, _ENVIRONMENT)
    judged = [_judged(row, story, speeds) for row, story in stories.items()]
    return Report(
        started="2026-01-02T00:00:00+00:00",
        environment=_ENVIRONMENT,
        selected=len(chosen),
        again=("llama-perf", "run", "--compare", "--set", "reference"),
        device_bandwidth_gb_s=CEILING_GB_S,
        results=tuple(result for result, _ in judged),
        comparisons=tuple(comparison for _, comparison in judged),
        baseline_source=f"made up, recorded {baseline.recorded}",
        environment_changes=_THEN.changes(_ENVIRONMENT),
        note=NOTE,
    )


def _stories() -> Iterator[_Story]:
    basic = len(load_set("reference")) + len(load_set("published"))
    return (
        _STORIES.get(number % basic, _USUAL)
        for number in range(len(_VARIATIONS) * basic)
    )


def _stored(row: RowSpec, story: _Story) -> BaselineRow:
    figures = (measurement(row, f"then {one}", story.then) for one in _PROCESSES)
    stored = baseline_row(row, *figures)
    if story.verdict is Verdict.INCOMPARABLE:
        stored = replace(stored, fingerprint="0" * 16)
    return stored


def _judged(
    row: RowSpec, story: _Story, baseline: SpeedBaseline
) -> tuple[RowResult, Comparison]:
    stored = baseline.rows.get(row.id)
    if story.problem:
        is_invalid = story.verdict is None
        status = Status.INVALID if is_invalid else Status.NOT_RUN
        result = RowResult(id=row.id, row=row, status=status, reason=story.problem)
        return result, verdict.compare(result, baseline)
    if stored is not None and "pairs" in story.evidence:
        return _judged_by_pairs(row, story, stored)
    result = _result(row, "now", story.now)
    confirmation, processes = None, None
    if story.evidence:
        fresh = [_result(row, f"fresh {one}", story.now) for one in _PROCESSES]
        confirmation = Confirmation(fresh=[Trial(row=one) for one in fresh])
        processes = _processes(fresh)
    comparison = verdict.compare(result, baseline, confirmation=confirmation)
    if story.verdict in {Verdict.ALREADY_SLOWER, Verdict.ALREADY_LARGER}:
        reason = f"the base revision is worse already; {comparison.reason}"
        comparison = replace(
            comparison, verdict=story.verdict, failed=False, reason=reason
        )
    return result, replace(comparison, before=_before(stored), processes=processes)


def _judged_by_pairs(
    row: RowSpec, story: _Story, stored: BaselineRow
) -> tuple[RowResult, Comparison]:
    sides = {"base": story.then, "head": story.now}
    results = {
        side: [_result(row, f"{side} {one}", change) for one in _PROCESSES]
        for side, change in sides.items()
    }
    apart = 0.03 if "scattered" in story.evidence else 0.001
    losses = [step * apart + story.now.time for step in (-1, 1, -2, 2, -1, 1, -2, 2)]
    pairs = PairedRow(
        row=row,
        results=results,
        blocks=[
            Block(first, second)
            for first, second in zip(losses, losses[::-1], strict=True)
        ],
        way="one generation of each side in turn",
    )
    result, comparison = PairsGate().compare(pairs)
    return result, replace(
        comparison, before=_before(stored), processes=_processes(results["head"])
    )


def _result(row: RowSpec, process: str, change: Change) -> RowResult:
    figures = measurement(row, process, change)
    return RowResult(id=row.id, row=row, status=Status.MEASURED, measurement=figures)


def _before(stored: BaselineRow | None) -> Before | None:
    if stored is None or stored.processes is None:
        return None
    # A baseline keeps no times of single tokens.
    figures = replace(stored.measurement, token_ns=None)
    return Before(measurement=figures, processes=stored.processes)


def _processes(results: Sequence[RowResult]) -> tuple[ProcessSamples, ...]:
    figures = [result.measurement for result in results if result.measurement]
    return baseline_row(results[0].row, *figures).processes or ()


def main(argv: Sequence[str] | None = None) -> None:
    """Write the results to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.made_up_run",
        description="Write the results of a card that does not exist.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a .json file")
    text = "so many rows (default: %(default)s, those of two sets)"
    parser.add_argument("--rows", type=int, metavar="N", default=86, help=text)
    arguments = parser.parse_args(argv)
    try:
        check_writable("FILE", arguments.file)
    except SpecError as error:
        parser.error(str(error))
    write_atomically(arguments.file, to_json(made_up_report(arguments.rows)))


if __name__ == "__main__":
    main()
