"""What a card showed of captures; the stand-ins need none."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from llama_perf.llama import decode_step


class Stream:
    made = 0

    def __init__(self) -> None:
        Stream.made += 1

    def wait_stream(self, _other: Stream) -> None:
        pass


class Graph:
    def register_generator_state(self, _generator: object) -> None:
        pass


def test_everything_runs_and_is_captured_on_one_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cuBLAS keeps 32 MB for each stream that it has seen, and none is given back."""
    used: list[Any] = []

    def on(stream: Any) -> Any:
        used.append(stream)
        return nullcontext()

    main = Stream()
    for name, value in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "current_device": lambda: 0,
        "current_stream": lambda: main,
        "stream": on,
        "graph": lambda _graph, stream: on(stream),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    Stream.made = 0
    decode_step._capture_stream.cache_clear()
    ran: list[int] = []
    for number in range(3):
        decode_step.warm_up(partial(ran.append, number))
        decode_step.capture_graph(partial(ran.append, number))
    decode_step._capture_stream.cache_clear()
    assert ran == [0, 0, 1, 1, 2, 2]
    assert Stream.made == 1
    assert used == [used[0]] * 6
