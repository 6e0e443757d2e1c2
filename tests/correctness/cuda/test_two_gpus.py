"""Two ranks on two GPUs against one process: NCCL, its capture, the one-shot kernel.

Each test's body runs on two ranks of the CPU too, so that it is known to work.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf import quantize_model
from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.checkpoints.sharded import sharded
from llama_perf.devices import all_reduce
from llama_perf.devices.all_reduce import ONE_SHOT, choose_all_reduce, sum_over_ranks
from llama_perf.devices.ranks import own_rank, reduced
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import GREEDY, EngineOptions
from tests.correctness.support.engines import SMALL, distance, dtype_on
from tests.correctness.support.rank_pool import RankPool

PROMPT = torch.tensor([[5, 6, 7, 8]])
# As the rows of the set `tensor-parallel`. A CPU has no capture.
FIELDS: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compile": True},
    "captured": {"capture": True},
    "fused": {"fused": True, "capture": True},
}
CLOSE = {"cpu": 1e-5, "cuda": 2e-2}


@pytest.fixture
def two(
    device: torch.device, rank_pool: Callable[..., RankPool]
) -> Callable[..., list[Tensor]]:
    """Run a function on two ranks of the device."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("fewer than two GPUs on this machine")
    return rank_pool(2, device.type).run


def observed(kind: str, how: str, scheme: str | None) -> tuple[Tensor, Tensor]:
    """Tokens and their logits, of the second of two generations."""
    device = torch.device(kind)
    dtype = dtype_on(device)
    whole = SyntheticWeights(SMALL, dtype=dtype, device=device)
    model = build_model(sharded(whole, own_rank()), dtype=dtype, device=device)
    if scheme is not None:
        model = quantize_model(model, scheme, kernels="native")
    if own_rank().count > 1:
        captured = how in ("captured", "fused")
        choose_all_reduce(SMALL.dim, dtype, device, captured=captured)
    fields = {**FIELDS[how], "capture": kind == "cuda" and "capture" in FIELDS[how]}
    engine = Engine(model, EngineOptions(cache_size=32, **fields))
    run = partial(engine.observe, PROMPT.to(device), observed=6, max_new_tokens=6)
    run(sampling=GREEDY)
    tokens, logits = run(sampling=GREEDY)
    return tokens.cpu(), logits.float().cpu()


@pytest.mark.parametrize(
    ("how", "scheme"),
    [*((how, None) for how in FIELDS), ("eager", "int8wo"), ("fused", "int8wo")],
)
def test_two_ranks_generate_what_one_does(
    device: torch.device, two: Callable[..., list[Tensor]], how: str, scheme: str | None
) -> None:
    if how == "compiled" and device.type == "cpu":
        pytest.skip("llama/test_ranks.py compiles for a CPU")
    _, logits = observed(device.type, how, scheme)
    (tokens, first), (others, second) = two(observed, device.type, how, scheme)
    assert torch.equal(tokens, others)
    assert torch.equal(first, second)
    # Behind another token the text is another one.
    assert distance(first[:, 0], logits[:, 0]) < CLOSE[device.type]


def both_ways(kind: str) -> tuple[list[Tensor], bool]:
    """Sums of 8 and 64 KB by each way that there is, the last one as it is chosen."""
    device, dtype = torch.device(kind), dtype_on(torch.device(kind))
    sums = []
    for values in (8192 // dtype.itemsize, 65536 // dtype.itemsize):
        x = torch.arange(values, device=device).remainder(64).to(dtype)
        x = x.view(1, 1, -1) * (1 + own_rank().index)
        sums.append(reduced(x, "sum"))
        kernel = all_reduce.one_shot(values, dtype, device)
        if kernel is not None:
            sums += [kernel(x), kernel(x)]
        choose_all_reduce(values, dtype, device, captured=True)
        sums.append(sum_over_ranks(x))
    return [made.cpu() for made in sums], all_reduce.all_reduce_name(device) == ONE_SHOT


def test_both_ways_to_sum_give_the_same(
    device: torch.device, two: Callable[..., list[Tensor]]
) -> None:
    for sums, is_one_shot in two(both_ways, device.type):
        for made in sums:
            values = torch.arange(made.numel()).remainder(64).view_as(made)
            # Small whole numbers are exact in any order.
            assert torch.equal(made.long(), 3 * values)
        assert device.type == "cuda" or not is_one_shot
