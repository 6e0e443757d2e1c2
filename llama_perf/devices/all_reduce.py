"""The sums over the ranks: by NCCL or gloo, or by one kernel over symmetric memory.

The sums of a decoding step have 8 to 64 KB, so what they take is waiting for one
another. torch's symmetric memory lets a kernel read what the other GPUs wrote: it
writes this rank's part, waits for the others', and adds all in the order of the ranks.
The kernel is torch's, "one-shot all-reduce". `choose_all_reduce` takes what is faster.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llama_perf.devices.cuda import capture_graph, warm_up
from llama_perf.devices.device import device_of
from llama_perf.devices.ranks import from_every_rank, group_name, reduced

SumOverRanks = Callable[[Tensor], Tensor]

ONE_SHOT = "one_shot"
# Its kernel adds no float16.
_DTYPES = (torch.float32, torch.bfloat16)
_ALIGNED_BYTES = 16
# The ways are compared by so many sums, one behind the other.
_SUMS = 16
_REPEATS = 20

torch.library.define("llama_perf::one_shot_sum", "(Tensor x) -> Tensor")
_one_shot_sum = torch.ops.llama_perf.one_shot_sum.default

_one_shot: SumOverRanks | None = None
# How many values, and of which dtype, the sums have that it makes.
_kind: tuple[int, torch.dtype] | None = None


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of every rank's `x`, the same on all of them.

    It may be part of compiled code and of a captured graph. On the meta device there
    need be no ranks.
    """
    if _kind is not None and x.dtype == _kind[1] and x.numel() == _kind[0]:
        out: Tensor = _one_shot_sum(x)
        return out
    return reduced(x, "sum")


def choose_all_reduce(
    values: int, dtype: torch.dtype, device: torch.device, *, captured: bool
) -> None:
    """Have sums of so many `values` made in the faster way, the same on every rank.

    Every rank has to call it. `captured` says that they will be part of a graph.
    """
    global _kind, _one_shot
    _kind, _one_shot = None, one_shot(values, dtype, device)
    # A machine may let one GPU see another's memory, and not all of them.
    if not all(from_every_rank(_one_shot is not None)):
        return
    x = torch.zeros(values, dtype=dtype, device=device)

    def many(make: SumOverRanks) -> Callable[[], object]:
        return lambda: [make(x) for _ in range(_SUMS)]

    library = slowest_s(many(partial(reduced, operation="sum")), device, captured)
    if slowest_s(many(_one_shot_sum), device, captured) < library:
        _kind = values, dtype


def all_reduce_name(device: torch.device) -> str:
    """How the sums of a decoding step are made: "nccl", "gloo" or ONE_SHOT."""
    if _kind is not None:
        return ONE_SHOT
    return "nccl" if device.type == "cuda" else "gloo"


def slowest_s(
    work: Callable[[], object], device: torch.device, captured: bool
) -> float:
    """The seconds that `work` takes on the slowest rank, of many times the median.

    With `captured` it is replayed as a graph. All ranks begin together.
    """
    run, used = work, device_of(device)
    if captured and used.has_graphs:
        warm_up(work)
        run = capture_graph(work).replay
    times = []
    for _ in range(_REPEATS):
        used.synchronize()
        dist.barrier()
        start = time.perf_counter()
        run()
        used.synchronize()
        times.append(time.perf_counter() - start)
    return max(from_every_rank(median(times)))


def one_shot(
    values: int, dtype: torch.dtype, device: torch.device
) -> SumOverRanks | None:
    """Torch's one-shot sum of so many `values`; None where it has none.

    Every rank has to call it: they tell each other where their memory is.
    """
    size = values * dtype.itemsize
    if device.type != "cuda" or dtype not in _DTYPES or size % _ALIGNED_BYTES:
        return None
    group: Any = group_name()
    try:
        import torch.distributed._symmetric_memory as symmetric_memory

        all_reduce = torch.ops.symm_mem.one_shot_all_reduce_copy
        buffer: Any = symmetric_memory.empty(values, dtype=dtype, device=device)
        symmetric_memory.rendezvous(buffer, group)
    except (ImportError, AttributeError, RuntimeError):
        # A torch without it, GPUs that do not see one another's memory, a driver.
        return None

    def summed(x: Tensor) -> Tensor:
        part = x.reshape(-1)
        if part.storage_offset() * dtype.itemsize % _ALIGNED_BYTES:
            part = part.clone()
        out: Tensor = all_reduce(buffer, part, "sum", group)
        return out.view(x.shape)

    return summed


@torch.library.impl("llama_perf::one_shot_sum", "CompositeExplicitAutograd")
def _run(x: Tensor) -> Tensor:
    assert _one_shot is not None, "the ranks have chosen"
    return _one_shot(x)


@torch.library.register_fake("llama_perf::one_shot_sum")  # type: ignore[untyped-decorator]
def _shape(x: Tensor) -> Tensor:
    return torch.empty_like(x)
