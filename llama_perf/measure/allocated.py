"""The bytes that a row's tensors take at their peak, on a CPU.

A resident set differs by tens of megabytes between processes that do the same; what the
allocator was asked for does not. Counted by PyTorch's profiler outside the samples:
what an operator allocates inside and frees again is seen as well.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

from llama_perf.measure.prepare import Prepared

# The prefill's token and a step's: later steps allocate the same again.
_TOKENS = 2


def allocated_peak(prepared: Prepared) -> int:
    """Weights, caches and the most beside them in a generation of two tokens.

    Call it after the warm-up: what is allocated once is not seen.
    """
    generator = torch.Generator().manual_seed(0)
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        prepared.generate(
            generator, max_new_tokens=min(_TOKENS, prepared.row.max_new_tokens)
        )
    assert profiler.profiler is not None, "it ran"
    assert profiler.profiler.kineto_results is not None, "it ran"
    moves = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    beside: int = max(accumulate((nbytes for _, nbytes in moves), initial=0))
    return prepared.engine.memory_bytes() + beside
