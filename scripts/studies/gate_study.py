"""`python -m scripts.studies.gate_study`: how often the gate errs on this machine.

Records a baseline, runs the rows again and again without change, then with a known
share of the decoding steps repeated, all by the commands that users run. A run slows
either the quantized rows or the others: a quantized row is compared with the
unquantized one, so a slowdown of both shows only in the unquantized row. Each run's
results stay in the work folder, where `--resume` continues. The table counts the
verdicts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_perf.results.run import Report, read_report
from llama_perf.results.verdict import Comparison, Verdict
from llama_perf.rows import selection as row_sets
from scripts.doc_tables.document import Place, github_table, place, replace_between

ROOT = Path(__file__).resolve().parents[2]
# Of the quick rows with their slowdowns, and of a set of the package.
PLACE = place("gate-why.md", "study")
SET_PLACE = place("gate-why.md", "study of a set")
ROWS = Path(__file__).with_name("gate_study.toml")
SLOWDOWNS = (0, 1, 2, 3, 5, 10, 25)
_HEADERS = (
    "repeated steps",
    "runs",
    "rows judged",
    "suspicious",
    "SLOWER",
    "runs that failed a row",
    "min. detectable (median)",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """All runs with the same share of repeated steps, in percent."""

    percent: int
    reports: tuple[Report, ...]

    @property
    def judged(self) -> list[Comparison]:
        """The verdicts on measured rows; only on slowed rows if a run slows some."""
        return [
            verdict
            for report in self.reports
            for result, verdict in zip(report.results, report.comparisons, strict=True)
            if result.measurement is not None
            and (self.percent == 0 or result.measurement.injected_slowdown > 0)
        ]

    @property
    def failed(self) -> bool:
        """Whether any of those verdicts is a failure."""
        return any(comparison.failed for comparison in self.judged)

    def cells(self) -> list[str]:
        """A line of the table."""
        slower = [row.verdict is Verdict.SLOWER for row in self.judged]
        failed = [
            Runs(percent=self.percent, reports=(report,)).failed
            for report in self.reports
        ]
        detectable = sorted(row.minimum_detectable or 0.0 for row in self.judged)
        return [
            "none" if self.percent == 0 else f"{self.percent} %",
            str(len(self.reports)),
            str(len(self.judged)),
            str(sum(row.doubtful for row in self.judged)),
            f"{sum(slower)} ({sum(slower) / max(len(slower), 1):.0%})",
            f"{sum(failed)}",
            f"{detectable[len(detectable) // 2]:.1%}" if detectable else "-",
        ]


def table(studied: Sequence[Runs]) -> str:
    """The table of all shares, markdown."""
    cells = [runs.cells() for runs in studied]
    return github_table(cells, _HEADERS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and print it; returns 1 if an unchanged run failed a row."""
    arguments = _parser().parse_args(argv)
    work: Path = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    chosen = ["--rows", str(arguments.rows.absolute())]
    if arguments.set is not None:
        chosen = ["--set", arguments.set]
        rows = row_sets.load_set(arguments.set)
    else:
        rows = row_sets.load_file(arguments.rows)
    chosen += ["--baselines", str(work / "baselines")]
    if not (arguments.resume and list(work.glob("baselines/*/*.json"))):
        record = ["baseline", "record", "--fresh", *chosen]
        _command([*record, "--processes", str(arguments.processes)], allowed=(0,))
    reports: dict[int, list[Report]] = {}
    try:
        for percent in SLOWDOWNS:
            runs = arguments.runs if percent == 0 else arguments.slowed_runs
            for number in range(runs):
                path = work / f"slowed-{percent}-run-{number}.json"
                words = ["run", "--compare", "--results", str(path), *chosen]
                for row in rows:
                    if percent and row.is_quantized == (number % 2 == 0):
                        words += ["--inject-slowdown", f"{row.id}={percent}"]
                if not (arguments.resume and _is_complete(path)):
                    _command(words, allowed=(0, 1))
                reports.setdefault(percent, []).append(read_report(path))
    finally:
        # A study that is stopped has the runs before it; the table says how many.
        text = table(
            [
                Runs(percent=percent, reports=tuple(of_percent))
                for percent, of_percent in reports.items()
            ]
        )
        print(text)
        if arguments.write and reports:
            where = PLACE if arguments.set is None else SET_PLACE
            _write(text, reports[min(reports)][0], arguments.processes, where)
    return 1 if Runs(percent=0, reports=tuple(reports.get(0, ()))).failed else 0


def _is_complete(path: Path) -> bool:
    if not path.exists():
        return False
    report = read_report(path)
    return len(report.results) == report.selected


def _command(words: Sequence[str], *, allowed: tuple[int, ...]) -> None:
    command = [sys.executable, "-m", "llama_perf", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"llama-perf {' '.join(words)}: exit code {done.returncode}")


def _write(text: str, report: Report, processes: int, place: Place) -> None:
    where = report.environment
    conditions = (
        f"{where.device_name}, {where.threads} threads, torch {where.torch},"
        f" llama-perf {where.commit}; a baseline of {processes} processes:"
    )
    replace_between(*place, f"{conditions}\n\n{text}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.gate_study",
        description="Run the gate without change and with injected slowdowns, and"
        " count what it says.",
    )
    parser.add_argument("--set", metavar="NAME", help="a set of the package")
    parser.add_argument("--rows", metavar="FILE", type=Path, default=ROWS)
    parser.add_argument("--runs", metavar="N", type=int, default=20)
    parser.add_argument("--slowed-runs", metavar="N", type=int, default=2)
    parser.add_argument("--processes", metavar="N", type=int, default=5)
    parser.add_argument(
        "--work", type=Path, metavar="DIR", default=ROOT / ".llama-perf" / "gate-study"
    )
    parser.add_argument(
        "--resume", action="store_true", help="take over the runs in the work folder"
    )
    parser.add_argument(
        "--write", action="store_true", help="replace the table of docs/gate-why.md"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
