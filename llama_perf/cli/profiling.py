"""`generate --profile` and `--memory_profile`: traces for PyTorch's own viewers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llama_perf.measure.prepare import Prepared
from llama_perf.measure.timing import time_generation


def profile(prepared: Prepared, path: str | None) -> None:
    """Write a Chrome trace of one further generation, untimed."""
    if path is None:
        return
    device = prepared.engine.model.device
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.profiler.profile() as trace:
        time_generation(prepared, generator)
    trace.export_chrome_trace(path)
    print(f"wrote {path}")


@contextmanager
def memory_profile(path: str | None) -> Iterator[None]:
    """Write a snapshot of all CUDA allocations made inside."""
    if path is None:
        yield
        return
    torch.cuda.memory._record_memory_history()
    try:
        yield
    finally:
        torch.cuda.memory._dump_snapshot(path)
        torch.cuda.memory._record_memory_history(enabled=None)
        print(f"wrote {path}")
