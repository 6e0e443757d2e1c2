"""`python -m scripts.studies.gate_study`: how often the gate errs on this machine.

Records a baseline, runs the rows again and again without change, then with a known
share of the decoding steps repeated, all by the commands that users run. A run slows
either the quantized rows or the others: a quantized row is compared with the
unquantized one, so a slowdown of both shows only in the unquantized row. Each run's
results stay in the work folder, where `--resume` continues. The table counts verdicts.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llama_perf.metrics import FOUND
from llama_perf.results.run import Comparison, Report, Verdict
from llama_perf.rows import selection
from llama_perf.run.display import Display
from scripts.doc_tables.document import Place, github_table
from scripts.studies.runs import conditions, llama_perf, parsed, stored_or_run

# Of the quick rows with their slowdowns, and of a set of the package.
PLACE = Place("gate-why.md", "study")
SET_PLACE = Place("gate-why.md", "study of a set")
ROWS = Path(__file__).with_name("gate_study.toml")
SLOWDOWNS = (0, 1, 2, 3, 5, 10, 25)
_HEADERS = ["repeated steps", "runs", "rows judged", "suspicious", "SLOWER"]
_HEADERS += ["runs that failed a row", f"{FOUND} (median)"]


def judged(percent: int, reports: Sequence[Report]) -> list[Comparison]:
    """The verdicts on measured rows; only on slowed rows if a run slows some."""
    return [
        verdict
        for report in reports
        for result, verdict in report.judged
        if verdict is not None
        and result.measurement is not None
        and (percent == 0 or result.measurement.injected_slowdown > 0)
    ]


def failed(percent: int, reports: Sequence[Report]) -> bool:
    """Whether any of those verdicts is a failure."""
    return any(comparison.failed for comparison in judged(percent, reports))


def cells(percent: int, reports: Sequence[Report]) -> list[str]:
    """A line of the table: all runs with the same share of repeated steps."""
    rows = judged(percent, reports)
    slower = sum(row.verdict is Verdict.SLOWER for row in rows)
    detectable = sorted(row.minimum_detectable or 0.0 for row in rows)
    return [
        "none" if percent == 0 else f"{percent} %",
        str(len(reports)),
        str(len(rows)),
        str(sum(row.doubtful for row in rows)),
        f"{slower} ({slower / max(len(rows), 1):.0%})",
        str(sum(failed(percent, [report]) for report in reports)),
        f"{detectable[len(detectable) // 2]:.1%}" if detectable else "-",
    ]


def table(studied: Mapping[int, Sequence[Report]]) -> str:
    """The table of the runs by their share of repeated steps, markdown."""
    return github_table([cells(*runs) for runs in studied.items()], _HEADERS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and print it; returns 1 if an unchanged run failed a row."""
    text = "Run the gate without change and with injected slowdowns, and count what it"
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.gate_study", description=f"{text} says."
    )
    add = parser.add_argument
    add("--set", metavar="NAME", help="a set of the package")
    add("--rows", metavar="FILE", type=Path, default=ROWS)
    add("--runs", metavar="N", type=int, default=20)
    add("--slowed-runs", metavar="N", type=int, default=2)
    add("--processes", metavar="N", type=int, default=5)
    arguments = parsed(parser, argv, folder="gate-study")
    work = arguments.work
    if arguments.set is None:
        rows, where = selection.load_file(arguments.rows), PLACE
        chosen = ["--rows", str(arguments.rows.absolute())]
    else:
        rows, where = selection.load_set(arguments.set), SET_PLACE
        chosen = ["--set", arguments.set]
    chosen += ["--baselines", str(work / "baselines")]
    if not (arguments.resume and list(work.glob("baselines/*/*.json"))):
        record = ["baseline", "record", "--fresh", *chosen]
        llama_perf([*record, "--processes", str(arguments.processes)], allowed=(0,))
    reports: dict[int, list[Report]] = {}
    display = Display.on(sys.stderr)
    try:
        for percent in SLOWDOWNS:
            runs = arguments.runs if percent == 0 else arguments.slowed_runs
            for number in range(runs):
                path = work / f"slowed-{percent}-run-{number}.json"
                words = ["run", "--compare", "--results", str(path), *chosen]
                for row in rows:
                    if percent and row.is_quantized == (number % 2 == 0):
                        words += ["--inject-slowdown", f"{row.id}={percent}"]
                slowed = "no steps" if percent == 0 else f"{percent} % of steps"
                note = f"{slowed} repeated: run {number + 1} of {runs}"

                def run(words: Sequence[str] = words, note: str = note) -> None:
                    display.note(note)
                    llama_perf(words, allowed=(0, 1))

                report = stored_or_run(path, resume=arguments.resume, run=run)
                reports.setdefault(percent, []).append(report)
    finally:
        # A study that is stopped has the runs before it; the table says how many.
        text = table(reports)
        print(text)
        if arguments.write and reports:
            machine = reports[min(reports)][0].environment
            head = f"{conditions(machine)}; a baseline of {arguments.processes}"
            where.write(f"{head} processes:\n\n{text}")
    return int(failed(0, reports.get(0, ())))


if __name__ == "__main__":
    sys.exit(main())
