"""The gate's error rates by simulation: `python -m scripts.doc_tables gate`.

A run is a baseline of fresh processes, one process of each row to screen and five to
confirm. Each process is one draw of a log speed, and a slowdown moves its mean: the
deviations and limits are those of `llama_perf`, the draws and decisions are numpy's.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from llama_perf.gate import thresholds
from llama_perf.gate.thresholds import CONFIRM_PROCESSES, Spread, minimum_detectable
from llama_perf.metrics import FOUND
from scripts.doc_tables.document import Place, Table

Floats: TypeAlias = npt.NDArray[np.float64]
ROWS = 20
RUNS = 10_000
DEVIATIONS = (0.004, 0.006, 0.01, 0.02)
SLOWDOWNS = (0.01, 0.02, 0.03, 0.05, 0.10, 0.25)
MAX_FALSE_ALARMS = 0.001
"""The share of unchanged runs that may fail a row."""

SIZES = {"10": (10,) * ROWS, "5": (5,) * ROWS, "3 to 10": (3, 5, 7, 10) * (ROWS // 4)}
"""The processes that each row's baseline has."""


class Runs(NamedTuple):
    """Simulated runs: what each row lost in log speed, less the limit, (runs, rows)."""

    screened: Floats
    confirmed: Floats

    def slower(self, slowdown: float = 0.0) -> npt.NDArray[np.bool_]:
        """Which rows fail where each has lost that share of its speed."""
        failed: npt.NDArray[np.bool_] = np.minimum(*self) > math.log1p(-slowdown)
        return failed

    def false_alarms(self) -> float:
        """The share of unchanged runs that fail a row."""
        return float(self.slower().any(axis=1).mean())

    def detected(self, slowdown: float) -> float:
        """The share of slowed rows that fail."""
        return float(self.slower(slowdown).mean())


def simulate(
    deviations: Sequence[float],
    processes: Sequence[int],
    *,
    runs: int,
    seed: int = 0,
    tails: int | None = None,
) -> Runs:
    """Simulate runs of rows with these true deviations and baselines of `processes`.

    The draws are normal, or Student's with `tails` degrees scaled to the deviation.
    """
    source = np.random.default_rng(seed)
    scale, count = np.array(deviations), np.array(processes)
    shape = (runs, len(scale))

    def draws(number: int) -> Floats:
        if tails is None:
            drawn = source.standard_normal((*shape, number))
        else:
            drawn = source.standard_t(tails, (*shape, number))
            drawn *= math.sqrt((tails - 2) / tails)
        scaled: Floats = drawn * scale[:, None]
        return scaled

    there = np.arange(count.max()) < count[:, None]
    stored = draws(int(count.max())) * there
    mean = stored.sum(axis=2) / count
    squares = ((stored - mean[..., None]) ** 2 * there).sum(axis=2)
    screen, confirm = _limits(np.sqrt(squares / (count - 1)), processes)
    return Runs(
        screened=mean - draws(1)[..., 0] - screen,
        confirmed=mean - draws(CONFIRM_PROCESSES).mean(axis=2) - confirm,
    )


def _limits(own: Floats, processes: Sequence[int]) -> tuple[Floats, Floats]:
    """(screen, confirmation), by the package's own functions, run by run."""
    screen, confirm = [], []
    for deviations in own.tolist():
        pairs = zip(deviations, processes, strict=True)
        spreads = thresholds.shrunk(
            [Spread(deviation=one, degrees=n - 1, processes=n) for one, n in pairs]
        )
        screen.append(list(map(thresholds.screen_limit, spreads)))
        confirm.append(list(map(thresholds.confirm_limit, spreads)))
    return np.array(screen), np.array(confirm)


# By name: the true deviation of each row, and the tails of the draws.
CASES: Mapping[str, tuple[Sequence[float], int | None]] = {
    **{f"{deviation:.1%}": ((deviation,) * ROWS, None) for deviation in DEVIATIONS},
    "all four mixed": (DEVIATIONS * (ROWS // len(DEVIATIONS)), None),
    "1.0%, heavy tails": ((0.01,) * ROWS, 5),
}


def _draw(size: str, case: str) -> tuple[list[str], list[str]]:
    (deviations, tails), processes = CASES[case], SIZES[size]
    simulated = simulate(deviations, processes, runs=RUNS, tails=tails)
    alarms, detectable = simulated.false_alarms(), "-"
    if len({*deviations}) == len({*processes}) == 1:
        # Where the deviation is one and is known.
        known = Spread(
            deviation=deviations[0], degrees=math.inf, processes=processes[0]
        )
        detectable = f"{minimum_detectable(known):.1%}"
    detected = [f"{simulated.detected(loss):.1%}" for loss in SLOWDOWNS]
    problem = "more false alarms than one run in a thousand"
    problems = [problem] if alarms > MAX_FALSE_ALARMS else []
    return [f"{alarms:.2%}", *detected, detectable], problems


_LOSSES = (f"-{slowdown:.0%}" for slowdown in SLOWDOWNS)
_HEADERS = ("processes", "deviation", "runs with a false alarm", *_LOSSES)
TABLE = Table(
    place=Place("gate-why.md", "simulation"),
    headers=(*_HEADERS, FOUND),
    keys=list(product(SIZES, CASES)),
    draw=_draw,
)
