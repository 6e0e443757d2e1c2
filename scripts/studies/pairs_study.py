"""`python -m scripts.studies.pairs_study`: how often `compare` errs on this machine.

Compares a commit with itself again and again, by the command that users run: unchanged,
unchanged while a busy loop runs, and one kind of rows slowed by a known share.
Each run's results stay in the work folder, where `--resume` continues. The table counts
verdicts.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from llama_perf.metrics import FOUND
from llama_perf.results.run import Comparison, Report, Verdict
from llama_perf.run.display import Display
from scripts.doc_tables.document import Place, github_table
from scripts.studies.neighbour import busy_loop
from scripts.studies.runs import conditions, llama_perf, parsed, stored_or_run

PLACE = Place("gate-why.md", "study of pairs")
_HEADERS = ["slowed", "neighbour", "runs", "slowed rows", "SLOWER", "other rows"]
_HEADERS += ["SLOWER", "FASTER", "UNDECIDED", "pairs a row", FOUND]
KINDS = {"quantized": "*int8*", "unquantized": "*.none.fp32.cpu.compile*"}
"""Rows that are slowed together and measured by themselves, by what they are."""


class Case(NamedTuple):
    """A kind of run: the rows that are slowed, by how many percent, and a neighbour."""

    kind: str = ""
    percent: int = 0
    busy: bool = False

    @property
    def name(self) -> str:
        """The case as a part of a file's name."""
        slowed = f"{self.kind}-{self.percent}" if self.percent else "unchanged"
        return f"{slowed}{'-busy' if self.busy else ''}"

    @property
    def words(self) -> list[str]:
        """The options that select the rows and slow them."""
        if not self.percent:
            return []
        glob = KINDS[self.kind]
        return ["--row", glob, "--inject-slowdown", f"{glob}={self.percent}"]


def cases(percents: Sequence[int]) -> Iterator[Case]:
    """Unchanged, unchanged while a busy loop runs, then each slowdown."""
    yield Case()
    yield Case(busy=True)
    for percent in percents:
        for kind in KINDS:
            yield Case(kind, percent)


def cells(case: Case, reports: Sequence[Report]) -> list[str]:
    """A line of the table: all runs of one case."""
    slowed: list[Comparison] = []
    others: list[Comparison] = []
    for report in reports:
        for result, verdict in report.judged:
            if verdict is None or result.measurement is None:
                continue
            is_slowed = result.measurement.injected_slowdown > 0
            (slowed if is_slowed else others).append(verdict)

    def count(comparisons: Sequence[Comparison], verdict: Verdict) -> str:
        return str(sum(one.verdict is verdict for one in comparisons))

    share = "-"
    if slowed:
        found = count(slowed, Verdict.SLOWER)
        share = f"{found} ({int(found) / len(slowed):.0%})"
    decided = (Verdict.SLOWER, Verdict.FASTER, Verdict.UNDECIDED)
    pairs = [one.pairs or 0 for one in slowed + others]
    detectable = [one.minimum_detectable or 0.0 for one in slowed + others]
    return [
        f"{case.kind}, {case.percent} %" if case.percent else "none",
        "a busy loop" if case.busy else "nothing",
        str(len(reports)),
        str(len(slowed)),
        share,
        str(len(others)),
        *(count(others, verdict) for verdict in decided),
        f"{sum(pairs) / max(len(pairs), 1):.1f}",
        f"{median(detectable):.1%}" if detectable else "-",
    ]


def table(studied: Mapping[Case, Sequence[Report]]) -> str:
    """The table of the runs by their case, markdown."""
    return github_table([cells(*runs) for runs in studied.items()], _HEADERS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and print it; returns 1 if a row that was not slowed failed."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.pairs_study",
        description="Compare HEAD with itself without change and with slowdowns, and"
        " count the verdicts.",
    )
    add = parser.add_argument
    add("--set", metavar="NAME", default="cpu")
    add("--runs", metavar="N", type=int, default=5, help="of each unchanged case")
    add("--slowed-runs", metavar="N", type=int, default=1)
    add("--percent", metavar="P", type=int, nargs="*", default=[3, 5, 10, 25])
    arguments = parsed(parser, argv, folder="pairs-study")
    work = arguments.work
    studied: dict[Case, list[Report]] = {}
    display = Display.on(sys.stderr)
    begin = time.monotonic()
    most = max(arguments.runs, arguments.slowed_runs)
    turns = [
        (number, case) for number in range(most) for case in cases(arguments.percent)
    ]
    try:
        # In turn, so that a study that is stopped has some runs of each case.
        for number, case in turns:
            if number >= (arguments.slowed_runs if case.percent else arguments.runs):
                continue
            path = work / f"{case.name}-run-{number}.json"

            def run(number: int = number, case: Case = case, path: Path = path) -> None:
                minutes = (time.monotonic() - begin) / 60
                display.note(f"{minutes:.0f} min: {case.name}, run {number + 1}")
                words = ["compare", "--base", "HEAD", "--results", str(path)]
                words += ["--set", arguments.set, *case.words]
                _compare(words, busy=case.busy)

            report = stored_or_run(path, resume=arguments.resume, run=run)
            studied.setdefault(case, []).append(report)
    finally:
        text = table(studied)
        print(text)
        if arguments.write and studied:
            machine = next(iter(studied.values()))[0].environment
            PLACE.write(f"{conditions(machine)}:\n\n{text}")
    alarms = (Verdict.SLOWER, Verdict.FASTER)
    return int(
        any(
            verdict is not None and verdict.verdict in alarms
            for reports in studied.values()
            for report in reports
            for result, verdict in report.judged
            if result.measurement and not result.measurement.injected_slowdown
        )
    )


def _compare(words: Sequence[str], *, busy: bool) -> None:
    with busy_loop(runs=busy):
        llama_perf(words, allowed=(0, 1))


if __name__ == "__main__":
    sys.exit(main())
