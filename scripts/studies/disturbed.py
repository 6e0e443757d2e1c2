"""`python -m scripts.studies.disturbed`: when a CPU's rows count as disturbed.

They run alone, and beside a loop that works for a share of its time, in turn, each way
in a process of its own. Alone none may count; beside a loop those should that became
much slower. Writes the table of docs/gate-why.md.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from statistics import median
from typing import NamedTuple

import torch

from llama_perf.measure.environment import collect
from llama_perf.results.disturbance import disturbance_of
from llama_perf.results.measurement import Measurement
from llama_perf.rows.spec import RowSpec
from llama_perf.run.display import Display
from llama_perf.run.options import RunRequest
from llama_perf.run.time_left import Task
from llama_perf.run.worker import Worker
from scripts.doc_tables.document import Place, github_table
from scripts.studies.neighbour import busy_loop, named_rows

PLACE = Place("gate-why.md", "disturbed")
SHARES = (0.0, 0.1, 0.2, 0.4, 1.0)
"""Of one core: what the loop beside the rows takes."""


class Figures(NamedTuple):
    """A row of one process: what was measured, and what it is compared with."""

    now: Measurement
    alone_s: float
    usual_gb_s: float

    @property
    def time_share(self) -> float:
        """The time of a generation over that of the row alone in the same round."""
        return seconds(self.now) / self.alone_s

    @property
    def bandwidth_share(self) -> float:
        """The bandwidth over the median of all processes that ran alone."""
        return (self.now.device_bandwidth_gb_s or 0.0) / self.usual_gb_s

    @property
    def is_disturbed(self) -> bool:
        """Whether the row is marked."""
        return bool(disturbance_of(self.now, self.bandwidth_share))


def seconds(measured: Measurement) -> float:
    """The median time of a generation."""
    return median(measured.sample_ns) / 1e9


def measurements(rows: Sequence[RowSpec], share: float) -> list[Measurement]:
    """Each row in one process, beside a loop that takes that share of a core."""
    worker = Worker(options=RunRequest(), devices=[rows[0].device])
    measured = []
    with closing(worker), busy_loop(runs=share > 0, share=share):
        for row in rows:
            result = worker.run(row, lambda _text: None).result
            if result.measurement is None:
                raise SystemExit(f"{row.id}: {result.reason}")
            measured.append(result.measurement)
    return measured


def table(rounds: Sequence[Sequence[Sequence[Measurement]]]) -> str:
    """Markdown: a line a share; `rounds` has its rows by round and share."""
    alone = [process[0] for process in rounds]
    usual = median(one.device_bandwidth_gb_s or 0.0 for rows in alone for one in rows)
    lines = []
    for number, share in enumerate(SHARES):
        figures = [
            Figures(now, seconds(before), usual)
            for processes in rounds
            for now, before in zip(processes[number], processes[0], strict=True)
        ]
        loads = [one.now.load for one in figures if one.now.load is not None]
        marked = sum(one.is_disturbed for one in figures)
        lines.append(
            [
                f"{share:.0%} of a core" if share else "nothing",
                f"{marked} of {len(figures)}",
                _span([one.time_share for one in figures], "{:.2f}"),
                _span([load.lost_share for load in loads], "{:.0%}"),
                _span([load.steal_share or 0.0 for load in loads], "{:.1%}"),
                _span([one.bandwidth_share for one in figures], "{:.0%}"),
            ]
        )
    headers = ["the loop takes", "disturbed", "time", "lost", "steal", "bandwidth"]
    return github_table(lines, headers)


def _span(values: Sequence[float], form: str) -> str:
    """The median of values, the least and the most."""
    if not values:
        return "-"
    middle, low, high = map(form.format, (median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def main(argv: Sequence[str] | None = None) -> None:
    """Run all ways in turn and print the table; with `--write` into the document."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.disturbed",
        description="Which of a CPU's rows count as disturbed, alone and beside loops.",
    )
    parser.add_argument("--rounds", type=int, metavar="N", default=5)
    parser.add_argument("--write", action="store_true", help=f"into {PLACE.document}")
    arguments = parser.parse_args(argv)
    rows = named_rows()
    numbers = range(1, arguments.rounds + 1)
    display = Display.on(sys.stderr)
    display.plan(
        Task(id=str(share), name=f"round {number}, loop {share:.0%}", kind="round")
        for number in numbers
        for share in SHARES
    )
    rounds = []
    for _ in numbers:
        processes = []
        for share in SHARES:
            with display.next() as running:
                processes.append(measurements(rows, share))
                running.end("")
        rounds.append(processes)
    here = collect(torch.device("cpu"))
    text = (
        f"{here.device_name}, {here.threads} threads, torch {here.torch}, commit"
        f" {here.commit}; {arguments.rounds} rounds of {len(rows)} rows:\n\n"
        f"{table(rounds)}"
    )
    print(text)
    if arguments.write:
        PLACE.write(text)


if __name__ == "__main__":
    main()
