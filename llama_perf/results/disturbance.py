"""When a row counts as disturbed: what else ran while it took its samples.

The figures of such a row say as much of its neighbours as of the row. docs/gate.md says
what follows for its verdict.
"""

from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Comparison, RowResult

MAX_LOST_SHARE = 0.10
"""Of the time of a row's threads, what other processes may take. The row loses at least
as much: threads wait for the last of them after each product. Less than this is not
known for certain: CPU time is counted in hundredths of a second, and samples may take
a quarter of one."""
MAX_STEAL_SHARE = 0.05
"""Of the cores' time, what may go to other virtual machines. It is the loss that pairs
look for. The system cannot move a thread off a core that is gone, so a row loses more
by it than by another process."""
MIN_BANDWIDTH_SHARE = 0.80
"""Of the baseline's bandwidth, what must be there. It is the best of ten rounds, so a
neighbour has to be there all the time to lower it: processes of a machine that nobody
else used differ by a few percent, and a neighbour took a third."""


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
