"""Sums over ranks are made in the faster way, and all ranks take the same one.

torch's one-shot kernel needs GPUs. Here gloo's sums take its place, at once or late.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor

from llama_perf.devices import all_reduce
from llama_perf.devices.all_reduce import (
    ONE_SHOT,
    all_reduce_name,
    choose_all_reduce,
    sum_over_ranks,
)
from llama_perf.devices.ranks import own_rank, reduced
from tests.correctness.support.engines import CPU
from tests.correctness.support.rank_pool import RankPool

LATE_S = 0.002
GPU = torch.device("cuda")


def made_up(
    library_s: float, one_shot_s: float, cannot: int | None = None
) -> tuple[str, str, int, list[Tensor]]:
    """The way that is chosen, the next row's, the calls of the kernel, and sums."""
    calls = []

    def kernel(x: Tensor) -> Tensor:
        calls.append(x)
        time.sleep(one_shot_s)
        return reduced(x, "sum")

    def library(x: Tensor, operation: str) -> Tensor:
        time.sleep(library_s)
        return reduced(x, operation)

    made = None if own_rank().index == cannot else kernel
    choose = partial(choose_all_reduce, 4, torch.float32, CPU, captured=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(all_reduce, "one_shot", lambda *_kind: made)
        patch.setattr(all_reduce, "reduced", library)
        choose()
    name = all_reduce_name(CPU)
    calls.clear()
    compiled = torch.compile(sum_over_ranks, fullgraph=True, backend="eager")
    sums = [sum_over_ranks(torch.full((count,), 2.0)) for count in (4, 5)]
    sums.append(compiled(torch.full((2, 2), 2.0)))
    count = len(calls)
    choose()
    return name, all_reduce_name(CPU), count, sums


@pytest.mark.parametrize(
    ("times", "name", "calls"),
    [
        # Sums of another size are the library's.
        ((LATE_S, 0.0), ONE_SHOT, 2),
        ((0.0, LATE_S), "gloo", 0),
        # One GPU cannot: none does.
        ((LATE_S, 0.0, 1), "gloo", 0),
    ],
)
def test_the_faster_way_is_taken(
    times: Any, name: str, calls: int, rank_pool: Callable[[int], RankPool]
) -> None:
    for told in rank_pool(2).run(partial(made_up, *times)):
        chosen, left, counted, sums = told
        assert (chosen, counted) == (name, calls)
        assert left == "gloo"
        for made, shape in zip(sums, ((4,), (5,), (2, 2)), strict=True):
            assert torch.equal(made, torch.full(shape, 4.0))


def test_a_cpu_has_no_such_kernel() -> None:
    assert all_reduce.one_shot(4, torch.float32, CPU) is None


@pytest.fixture
def symmetric(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Symmetric memory that is made up: what its kernel was called with."""
    called: list[Any] = []

    def copied(buffer: Tensor, part: Tensor, operation: str, group: str) -> Tensor:
        called.append((buffer, part, operation, group))
        return 2 * part

    monkeypatch.setattr(all_reduce, "group_name", lambda: "ranks")
    monkeypatch.setattr(symmetric_memory, "rendezvous", lambda *_: None)
    monkeypatch.setattr(symmetric_memory, "empty", made_here)
    monkeypatch.setattr(torch.ops.symm_mem, "one_shot_all_reduce_copy", copied)
    return called


def made_here(values: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    assert device == GPU
    return torch.empty(values, dtype=dtype)


def test_the_kernel_gets_the_part_in_one_line_and_aligned(symmetric: list[Any]) -> None:
    kernel = all_reduce.one_shot(8, torch.bfloat16, GPU)
    assert kernel is not None
    whole = torch.arange(24, dtype=torch.bfloat16).view(3, 1, 8)
    shifted = torch.arange(9, dtype=torch.bfloat16)[1:].view(1, 8)
    for x in (whole[1:2], shifted):
        assert torch.equal(kernel(x), 2 * x)
    for buffer, part, *words in symmetric:
        assert buffer.shape == part.shape == (8,)
        assert part.storage_offset() * 2 % 16 == 0
        assert words == ["sum", "ranks"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_what_the_kernel_does_not_add_is_the_library_s(
    symmetric: list[Any], dtype: torch.dtype
) -> None:
    assert all_reduce.one_shot(8, dtype, GPU) is None
    # No whole 16 bytes.
    assert all_reduce.one_shot(7, torch.bfloat16, GPU) is None
    assert symmetric == []


def test_gpus_that_do_not_see_one_another_have_none(
    symmetric: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("CUDA driver error: peer access is not supported")

    monkeypatch.setattr(symmetric_memory, "rendezvous", refuse)
    assert all_reduce.one_shot(8, torch.bfloat16, GPU) is None
    assert symmetric == []
