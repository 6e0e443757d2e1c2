"""Blocks of pairs by simulation: `python -m scripts.doc_tables pairs`.

A sample has four parts of noise: the minute, in which neighbours and the clock slow
both sides alike; the bias of two processes, which lasts as long as they do; the process
that was built first, which is slower by an amount of its own for each row and each
time; the sample itself, and some that a neighbour hits. The
samples, pairs and blocks are drawn here; the decisions are those of `llama_perf`, and
so is the rule by which a block is measured again.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from llama_perf.gate.blocks import MAX_BLOCKS, MIN_BLOCKS, Block, Decision, block_test
from llama_perf.run.paired import DISTURBED, DISTURBED_SHARE, TRIES
from scripts.doc_tables.document import Place, Table

Floats: TypeAlias = npt.NDArray[np.float64]
ROWS = 20
RUNS = 10_000
SLOWED = 1_000
"""Rows that are simulated for each slowdown."""
LOSSES = (0.03, 0.05, 0.10, 0.25)
MAX_FALSE_ALARMS = 0.001
"""The share of unchanged runs that may fail a row."""
ROUNDS = 3


class Noise(NamedTuple):
    """Standard deviations of log times, and the rest of a machine's noise.

    `process` is that of two processes, with heavy tails: Student's t of 4 degrees.
    `first` is how much slower the side is that was built first, `first_varies` how much
    that differs from pair to pair. `hit` is the share of samples that a neighbour hits,
    each by up to `hit_by`.
    """

    minute: float = 0.10
    process: float = 0.01
    first: float = 0.05
    first_varies: float = 0.015
    sample: float = 0.02
    hit: float = 0.02
    hit_by: float = 0.5


MACHINES: Mapping[str, Noise] = {
    "steady (assumed)": Noise(0.003, 0.001, 0.0, 0.001, 0.002, 0.0, 0.0),
    "2 shared cores": Noise(),
    "2 shared cores, busy": Noise(0.20, 0.01, 0.05, 0.025, 0.03, 0.05, 0.5),
}


def blocks(noise: Noise, count: int, source: np.random.Generator) -> Floats:
    """The pairs' log losses of `count` unchanged rows, (count, MAX_BLOCKS, 2)."""
    shape = (TRIES, count, MAX_BLOCKS, 2, ROUNDS)
    # Of four samples in turn, A B B A, two are of each side.
    minute = source.standard_normal((*shape, 4)) * noise.minute / 10
    minute += source.standard_normal((*shape[:3], 1, 1, 1)) * noise.minute
    own = source.standard_normal((*shape, 4)) * noise.sample
    hits = source.random((*shape, 4)) < noise.hit
    own += hits * source.random((*shape, 4)) * noise.hit_by
    # The first half of a round and its second half share a part of the minute.
    minute = (minute + minute[..., ::-1]) / 2
    times = np.exp(minute + own)
    first = noise.first + noise.first_varies * source.standard_normal((*shape[:4], 1))
    slower, other = times[..., [0, 3]], times[..., [1, 2]]
    ratios = np.log(slower.sum(-1) / other.sum(-1)) + first
    # The base was built first in the first of the two pairs.
    ratios[..., 0, :] *= -1
    losses: Floats = np.median(ratios, axis=-1)
    # The first try that is not disturbed counts, and the last in any case.
    sides = np.stack([slower, other])
    is_slow = sides > DISTURBED * sides.min((-1, -2), keepdims=True)
    is_calm = (is_slow.any((0, -1)).mean(-1) < DISTURBED_SHARE).all(-1)
    is_calm[-1] = True
    tries = is_calm.argmax(0)[None, ..., None]
    counted: Floats = np.take_along_axis(losses, tries, 0)[0]
    bias = source.standard_t(4, (count, MAX_BLOCKS)) * noise.process / math.sqrt(2)
    # The same processes measure the blocks of the first look.
    bias[:, :MIN_BLOCKS] = bias[:, :1]
    return counted + bias[..., None]


def decided(values: Floats) -> tuple[Decision, int]:
    """The decision on a row by its blocks, and how many it took."""
    blocks = [Block(*pair) for pair in values.tolist()]
    for count in range(MIN_BLOCKS, MAX_BLOCKS + 1):
        decision = block_test(blocks[:count]).decision
        if decision is not Decision.UNDECIDED:
            return decision, count
    return Decision.UNDECIDED, MAX_BLOCKS


class Counts(NamedTuple):
    """Of simulated unchanged runs: shares of runs, and the mean blocks of a row."""

    slower: float
    faster: float
    undecided: float
    blocks: float


def unchanged(noise: Noise, runs: int, *, seed: int = 0) -> Counts:
    """Simulate runs of ROWS rows that did not change."""
    source, ended = np.random.default_rng(seed), []
    for _ in range(0, runs, 500):
        count = min(runs, 500) * ROWS
        ended += [decided(values) for values in blocks(noise, count, source)]
    rows = np.array([list(Decision).index(decision) for decision, _ in ended])
    by_run = rows.reshape(-1, ROWS)

    def share(decision: Decision) -> float:
        return float((by_run == list(Decision).index(decision)).any(axis=1).mean())

    return Counts(
        slower=share(Decision.SLOWER),
        faster=share(Decision.FASTER),
        undecided=share(Decision.UNDECIDED),
        blocks=float(np.mean([count for _, count in ended])),
    )


def found(
    noise: Noise, loss: float, rows: int, *, seed: int = 1
) -> tuple[float, float]:
    """The share of rows that are SLOWER after a loss, and their mean blocks."""
    source = np.random.default_rng(seed)
    lost = blocks(noise, rows, source) - math.log1p(-loss)
    ended = [decided(values) for values in lost]
    slower = [decision is Decision.SLOWER for decision, _ in ended]
    return float(np.mean(slower)), float(np.mean([count for _, count in ended]))


def _draw(machine: str) -> tuple[list[str], list[str]]:
    noise = MACHINES[machine]
    counts = unchanged(noise, RUNS)
    cells = [f"{counts.slower:.2%}", f"{counts.faster:.2%}", f"{counts.undecided:.2%}"]
    cells.append(f"{counts.blocks:.1f}")
    for loss in LOSSES:
        share, mean = found(noise, loss, SLOWED)
        cells.append(f"{share:.1%} ({mean:.1f})")
    alarms = max(counts.slower, counts.faster)
    problem = "more false alarms than one run in a thousand"
    return cells, [problem] if alarms > MAX_FALSE_ALARMS else []


TABLE = Table(
    place=Place("gate-why.md", "simulated pairs"),
    headers=(
        "machine",
        "runs with a SLOWER row",
        "with a FASTER row",
        "with an UNDECIDED row",
        "blocks a row",
        *(f"-{loss:.0%}" for loss in LOSSES),
    ),
    keys=[(machine,) for machine in MACHINES],
    draw=_draw,
)
