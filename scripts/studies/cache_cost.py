"""`python -m scripts.studies.cache_cost`: the cost of large and quantized caches.

Measures on a CPU: the rows of a group generate in turn, in one process, round after
round. So a slow minute of the machine slows all of them alike. The other rows of a
group are compared with its first. Writes the table of docs/long-context.md.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import torch

from llama_perf.measure.environment import collect
from llama_perf.measure.prepare import prepare_row
from llama_perf.measure.timing import time_row
from llama_perf.rows.spec import RowSpec
from llama_perf.run.display import Display
from llama_perf.run.time_left import Task
from scripts import ROOT
from scripts.doc_tables.document import Place, github_table
from scripts.studies.small_llama import MODEL, make_checkpoint

PLACE = Place("long-context.md", "cache cost")
_SMALL = RowSpec(
    model=MODEL, dtype="float32", device="cpu", max_new_tokens=200, num_samples=1
)
_FILLED = replace(
    _SMALL, model="SmolLM2-135M-Instruct", fill=200, cache_size=8192, max_new_tokens=40
)
_int8 = partial(replace, kv_cache_quantization=True)
GROUPS: Sequence[Sequence[RowSpec]] = (
    (_SMALL, replace(_SMALL, cache_size=2048), _int8(_SMALL, cache_size=2048)),
    (_FILLED, replace(_FILLED, cache_size=131072)),
    (_int8(_FILLED), _int8(_FILLED, cache_size=131072)),
)
_HEADERS = ("row", "decode tok/s", "of the first row's", "middle half of the rounds")


class Timed(NamedTuple):
    """Decoding times of one row in ns, one for each round."""

    row: RowSpec
    decode_ns: Sequence[int]

    @property
    def tok_s(self) -> float:
        """The median decoding rate."""
        return (self.row.max_new_tokens - 1) * 1e9 / median(self.decode_ns)


def timed(
    rows: Sequence[RowSpec], rounds: int, *, checkpoints: Path | None, display: Display
) -> list[Timed]:
    """All rows once to warm up, then in turn in each of `rounds`, which are planned."""
    prepared = [prepare_row(row, checkpoints=checkpoints) for row in rows]
    generator = torch.Generator().manual_seed(0)
    for row in prepared:
        time_row(row, generator)
    times: list[list[int]] = [[] for _ in rows]
    for number in range(rounds):
        # Each is first in its turn, and last.
        order = list(range(len(rows)))
        with display.next() as running:
            for index in order[number % len(rows) :] + order[: number % len(rows)]:
                running.step(rows[index].id)
                sample = time_row(prepared[index], generator)
                times[index].append(sample.total_ns - sample.first_token_ns)
            running.end("")
    return [Timed(row, ns) for row, ns in zip(rows, times, strict=True)]


def table(groups: Sequence[Sequence[Timed]]) -> str:
    """A line for each row, markdown: its speed over the first row's by round."""
    lines = []
    for first, *others in groups:
        lines.append((first.row.id, f"{first.tok_s:.1f}", "1", "-"))
        for row in others:
            pairs = zip(row.decode_ns, first.decode_ns, strict=True)
            shares = [then / now for now, then in pairs]
            low, middle, high = quantiles(shares, n=4)
            cells = (f"{row.tok_s:.1f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}")
            lines.append((row.row.id, *cells))
    return github_table(lines, _HEADERS)


def main(argv: Sequence[str] | None = None) -> None:
    """Time all groups and print the table; with `--write` into the document."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.cache_cost",
        description="Time rows with small, large and quantized caches in turn.",
    )
    parser.add_argument("--rounds", type=int, metavar="N", default=15)
    parser.add_argument("--write", action="store_true", help=f"into {PLACE.document}")
    arguments = parser.parse_args(argv)
    checkpoints = ROOT / ".llama-perf" / "torchao-0.15" / "checkpoints" / "llama-perf"
    make_checkpoint(checkpoints / MODEL)
    rounds: int = arguments.rounds
    display = Display.on(sys.stderr)
    display.plan(
        Task(id=f"group {group}", name=f"group {group}, round {number} of {rounds}")
        for group in range(1, len(GROUPS) + 1)
        for number in range(1, rounds + 1)
    )
    text = table(
        [
            timed(rows, rounds, checkpoints=checkpoints, display=display)
            for rows in GROUPS
        ]
    )
    print(text)
    if arguments.write:
        where = collect(torch.device("cpu"))
        conditions = (
            f"{where.device_name}, {where.threads} threads, torch {where.torch}"
        )
        conditions += f", llama-perf {where.commit}, {rounds} rounds:"
        PLACE.write(f"{conditions}\n\n{text}")


if __name__ == "__main__":
    main()
