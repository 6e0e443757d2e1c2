"""`python -m scripts.studies.mark_cost`: what it costs to time each token on a CPU.

A row generates with and without a mark behind each token, in turn, in one process. The
four generations of a round are with, without, without, with, so a machine that speeds
up or slows down through a round favours neither. What counts is the time of the
processor, in one thread: a mark is its work, and other processes take none of it.
Writes the table of docs/metrics.md.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import torch

from llama_perf.devices.device import device_of
from llama_perf.llama.compiler import compiler_settings
from llama_perf.measure.environment import collect
from llama_perf.measure.prepare import PreparedRow, prepare_row
from llama_perf.measure.timing import time_row
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables.document import Place, github_table

PLACE = Place("metrics.md", "cost of marks")
_SMALL = RowSpec(model="stories15M", dtype="float32", device="cpu", max_new_tokens=32)
_FUSED = replace(_SMALL, model="SmolLM2-135M-Instruct", compile=True, fused=True)
# The shortest steps that there are, and the fastest row of the set `cpu`.
ROWS = (_SMALL, replace(_FUSED, quantization="uintx-4-64", max_new_tokens=16))
_HEADERS = ("row", "ms a token", "rounds", "more with marks", "95 % interval")


class Marked(NamedTuple):
    """A row's times in ns, with marks and without, a pair for each round."""

    row: RowSpec
    rounds_ns: Sequence[tuple[int, int]]

    def cells(self) -> tuple[str, ...]:
        """A line of the table."""
        ratios = sorted(with_ns / without for with_ns, without in self.rounds_ns)
        low, high = median_interval(ratios)
        step_ms = median(ns for _, ns in self.rounds_ns) / 2e6 / self.row.max_new_tokens
        shown = (f"{step_ms:.2f}", f"{len(ratios)}", f"{median(ratios) - 1:+.2%}")
        return self.row.id, *shown, f"{low - 1:+.2%} to {high - 1:+.2%}"


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The two of at least 10 values between which their median lies, at 95 %.

    Fewer values than the first of them are below the true median with a chance of 2.5 %
    (of the normal distribution that a coin's is close to).
    """
    count = len(ordered)
    first = math.floor(count / 2 - 1.96 * math.sqrt(count) / 2)
    return ordered[first], ordered[count - 1 - first]


def unmarked(prepared: PreparedRow, generator: torch.Generator) -> None:
    """A generation that is marked at its ends only."""
    device = device_of(prepared.row.device)
    start = device.mark()
    prepared.engine.generate(prepared.prompt, **prepared.request(generator))
    device.times_ns([start, device.mark()])


def marked(row: RowSpec, rounds: int) -> Marked:
    """Time a row with and without marks."""
    times: list[tuple[int, int]] = []
    with compiler_settings(used=row.compile):
        prepared = prepare_row(row)
        generator = torch.Generator().manual_seed(0)
        # The first round warms up.
        for number in range(rounds + 1):
            spent = {time_row: 0, unmarked: 0}
            for generate in (time_row, unmarked, unmarked, time_row):
                start = time.process_time_ns()
                generate(prepared, generator)
                spent[generate] += time.process_time_ns() - start
            if number:
                times.append((spent[time_row], spent[unmarked]))
    return Marked(row, times)


def main(argv: Sequence[str] | None = None) -> None:
    """Time the rows and print the table; with `--write` into the document."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.mark_cost",
        description="Time rows with and without a mark behind each token.",
    )
    parser.add_argument("--rounds", type=int, metavar="N", default=200)
    parser.add_argument("--write", action="store_true", help=f"into {PLACE.document}")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    lines = []
    for row in ROWS:
        lines.append(marked(row, arguments.rounds).cells())
        print(*lines[-1], file=sys.stderr, flush=True)
    text = github_table(lines, _HEADERS)
    print(text)
    if arguments.write:
        where = collect(torch.device("cpu"))
        PLACE.write(
            f"{where.device_name}, torch {where.torch}, llama-perf {where.commit}:"
            f"\n\n{text}"
        )


if __name__ == "__main__":
    main()
