"""CUDA graphs: work warmed up and captured, to be replayed by one launch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

Work = Callable[[], None]


def warm_up(work: Work) -> None:
    """Run `work` on the stream that it will be captured on."""
    stream = _stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)


def captured(
    work: Work, generator: torch.Generator | None = None
) -> torch.cuda.CUDAGraph:
    """A graph of `work`, which is not run; what it draws moves `generator` on."""
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=_stream(torch.cuda.current_device())):
        work()
    return graph


@cache
def _stream(_device: int) -> torch.cuda.Stream:
    """One a device for all: cuBLAS keeps 32 MB for each stream that it has seen."""
    return torch.cuda.Stream()
