"""`python -m scripts.studies.neighbour`: a CPU's rows beside a busy loop.

Also beside nothing, with other ways for OpenMP's threads to wait than a worker's own.
The ways take turns, round after round, each in a process of its own that runs all rows.
Writes the table of docs/performance.md.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import torch

from llama_perf.measure.environment import collect
from llama_perf.report.table import short_names
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from llama_perf.run.display import Display
from llama_perf.run.options import RunRequest
from llama_perf.run.time_left import Task
from llama_perf.run.worker import Worker
from scripts.doc_tables.document import Place, github_table

PLACE = Place("performance.md", "neighbour")
ROWS = (
    "none.fp32.cpu.eager.new-16",
    "none.fp32.cpu.compile.fused.new-16",
    "int8wo.fp32.cpu.compile.fused.new-16",
    "int4wo-64.fp32.cpu.compile.fused.new-16",
)


class Way(NamedTuple):
    """Variables of a worker in addition to its own, and whether a loop runs beside."""

    name: str
    variables: Mapping[str, str] = {}
    busy: bool = False


WAYS = (
    Way("alone"),
    Way("beside a busy loop", busy=True),
    # It has to be said, since a worker sets its own. Beside a loop it takes minutes.
    Way("GOMP's default, alone", {"GOMP_SPINCOUNT": "300000"}),
    Way("OMP_WAIT_POLICY=ACTIVE, alone", {"OMP_WAIT_POLICY": "ACTIVE"}),
    Way("OMP_WAIT_POLICY=PASSIVE, alone", {"OMP_WAIT_POLICY": "PASSIVE"}),
)


_LOOP = """
import os, sys, time
parent, share = int(sys.argv[1]), float(sys.argv[2])
while os.getppid() == parent:
    end_s = time.perf_counter() + 0.05 * share
    while time.perf_counter() < end_s:
        pass
    if share < 1:
        time.sleep(0.05 * (1 - share))
"""


@contextmanager
def busy_loop(*, runs: bool, share: float = 1.0) -> Iterator[None]:
    """A process of normal priority, if it `runs`, that works for a share of its time.

    It ends by itself where this process was killed: it would disturb all that follows.
    """
    if not runs:
        yield
        return
    command = [sys.executable, "-c", _LOOP, str(os.getpid()), str(share)]
    with subprocess.Popen(command) as loop:
        try:
            yield
        finally:
            loop.kill()


def times_s(rows: Sequence[RowSpec], way: Way) -> list[float]:
    """The median seconds of a generation of each row, in one process."""
    own = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    kept = {name: value for name, value in os.environ.items() if name not in own}
    with patch.dict(os.environ, {**kept, **way.variables}, clear=True):
        worker = Worker(options=RunRequest(), devices=[rows[0].device])
    seconds = []
    with closing(worker), busy_loop(runs=way.busy):
        for row in rows:
            result = worker.run(row, lambda _text: None).result
            if result.measurement is None:
                raise SystemExit(f"{row.id}: {result.reason}")
            seconds.append(median(result.measurement.sample_ns) / 1e9)
    return seconds


def table(names: Sequence[str], rounds: Sequence[Sequence[Sequence[float]]]) -> str:
    """Markdown: a line a way, a column a row: seconds over those of the first way.

    `rounds` has the seconds of each row by round and way. Each is compared within its
    round.
    """
    lines = []
    for number, way in enumerate(WAYS[1:], 1):
        cells = [way.name]
        for index in range(len(names)):
            shares = [ways[number][index] / ways[0][index] for ways in rounds]
            cells.append(f"{median(shares):.2f} ({min(shares):.2f}-{max(shares):.2f})")
        lines.append(cells)
    return github_table(lines, ["way", *names])


def named_rows() -> list[RowSpec]:
    """The rows of the set `cpu` that ROWS names."""
    cpu = selection.load_set("cpu")
    return [next(row for row in cpu if row.id.endswith(f".{name}")) for name in ROWS]


def main(argv: Sequence[str] | None = None) -> None:
    """Time all ways and print the table; with `--write` into the document."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.neighbour",
        description="Time a CPU's rows alone and beside a busy loop, in turn.",
    )
    parser.add_argument("--rounds", type=int, metavar="N", default=4)
    parser.add_argument("--write", action="store_true", help=f"into {PLACE.document}")
    arguments = parser.parse_args(argv)
    rows = named_rows()
    numbers = range(1, arguments.rounds + 1)
    display = Display.on(sys.stderr)
    display.plan(
        Task(id=way.name, name=f"round {number}, {way.name}", kind="round")
        for number in numbers
        for way in WAYS
    )
    rounds = []
    for _ in numbers:
        ways = []
        for way in WAYS:
            with display.next() as running:
                ways.append(times_s(rows, way))
                running.end("")
        rounds.append(ways)
    here, (names, _) = collect(torch.device("cpu")), short_names([r.id for r in rows])
    text = (
        f"{here.device_name}, {here.threads} threads, torch {here.torch}, commit"
        f" {here.commit}; {arguments.rounds} rounds:\n\n{table(names, rounds)}"
    )
    print(text)
    if arguments.write:
        PLACE.write(text)


if __name__ == "__main__":
    main()
