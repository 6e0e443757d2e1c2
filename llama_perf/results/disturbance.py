"""When a row counts as disturbed: what else ran while it took its samples.

The figures of such a row say as much of its neighbours as of the row. docs/gate.md says
what follows for its verdict.
"""

from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Comparison, RowResult

MAX_LOST_SHARE = 0.10
"""Of the time of a row's threads, what other processes may take. A busy loop, which
takes half of two cores, makes rows take 1.2 to 1.3 times as long: docs/performance.md.
So a tenth costs about 5 %, the loss that pairs look for. A smaller share would not be
certain: CPU time is counted in hundredths of a second, and samples may take a
quarter of one."""
MAX_STEAL_SHARE = 0.05
"""Of the cores' time, what may go to other virtual machines. The system moves a thread
away from a busy core, but not from one that has been taken away. So it is half of the
share above."""
MIN_BANDWIDTH_SHARE = 0.80
"""Of the baseline's bandwidth, what must be there. With nothing else running, the least
of 79 processes had 82 % of their median. Beside a busy loop 30 of 62 were below 80 %:
docs/gate-why.md."""


def disturbance(result: RowResult, comparison: Comparison | None = None) -> str:
    """By what a row was disturbed, in words; empty where it was by nothing.

    Rows in pairs are not: what slows one side slows the other one too, and each side's
    process is the other's neighbour.
    """
    if result.measurement is None:
        return ""
    if comparison is None:
        return disturbance_of(result.measurement)
    if comparison.pairs is not None:
        return ""
    return disturbance_of(result.measurement, comparison.bandwidth_share)


def disturbance_of(now: Measurement, bandwidth_share: float | None = None) -> str:
    """The same of a measurement; `bandwidth_share` is its bandwidth by the baseline's.

    Whatever it was disturbed by, all that is known of the system's load is said.
    """
    words = []
    if now.neighbours:
        words.append(f"other processes on the GPU: {', '.join(now.neighbours)}")
    if bandwidth_share is not None and bandwidth_share < MIN_BANDWIDTH_SHARE:
        words.append(f"bandwidth {bandwidth_share:.0%} of the baseline's")
    load = now.load
    if load is not None:
        stolen = load.steal_share or 0.0
        is_loaded = load.lost_share > MAX_LOST_SHARE or stolen > MAX_STEAL_SHARE
        if words or is_loaded:
            words.append(load.summary)
    return ", ".join(words)
