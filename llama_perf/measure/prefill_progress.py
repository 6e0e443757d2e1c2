"""What is shown while a long prompt is prefilled: how much of it is done.

Only outside the samples: each chunk is waited for, which a timed one must not be.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llama_perf.devices.device import device_of
from llama_perf.llama.row_engine import RowEngine
from llama_perf.words import counted

INTERVAL_S = 1.0
"""Seconds from one report to the next."""


@contextmanager
def told_prefill(
    engine: RowEngine, progress: Callable[[str], None], *, step: str, noun: str
) -> Iterator[None]:
    """Tell `progress` how far the prompts have come that the block prefills.

    `step` says in words what a prompt is for, `noun` what is counted.
    """
    device = device_of(engine.model.device)
    told_s = time.monotonic()

    def after_chunk(done: int, total: int) -> None:
        nonlocal told_s
        # The host asks a GPU for chunks faster than it runs them.
        device.synchronize()
        if done < total and time.monotonic() - told_s >= INTERVAL_S:
            told_s = time.monotonic()
            progress(f"{step}: {done} of {counted(total, noun)}")

    before, engine.after_chunk = engine.after_chunk, after_chunk
    try:
        yield
    finally:
        engine.after_chunk = before
