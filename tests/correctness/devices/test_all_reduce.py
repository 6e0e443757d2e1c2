"""Sums over ranks are made in the faster way, and all ranks take the same one.

torch's one-shot kernel needs GPUs. Here gloo's sums take its place, at once or late.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
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
