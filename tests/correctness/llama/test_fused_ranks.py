"""Fused kernels of ranks that share a model, against one process's modules.

On a CPU by its operator; in Triton's interpreter, in whose process alone the ranks run
Triton's kernels, by these.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from llama_perf import quantize_model
from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.sharded import sharded
from llama_perf.devices.ranks import own_rank
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import Engine
from llama_perf.llama.fused_cpu import FusedCpuStep
from llama_perf.llama.options import Request, Sampling
from tests.correctness.support.engines import CPU, distance, engine
from tests.correctness.support.fused import SMALL, TURNED_CODES, limit_of
from tests.correctness.support.kernel_samples import INTERPRETED
from tests.correctness.support.rank_pool import RankPool
from tests.correctness.support.weights_samples import tiny_weights

# Halves of the columns are whole groups.
CONFIG = replace(SMALL, n_heads=4, n_kv_heads=2, intermediate_size=192)
BIASED = replace(CONFIG, qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True)
# One of each format.
CASES = [
    (CONFIG, None, torch.float32, None),
    (CONFIG, "int8wo", torch.float32, "int8"),
    (CONFIG, "int8dq", torch.float32, None),
    (CONFIG, "int4wo-32", torch.bfloat16, None),
    (CONFIG, "fp6", torch.float32, "fp8"),
    (CONFIG, "uintx-4-8", torch.float16, None),
]

Case = tuple[ModelConfig, str | None, torch.dtype, str | None]
PROMPT = torch.tensor([[5, 6], [7, 8]])
DRAWS = Sampling(temperature=0.9, top_k=12, seed=3)


@pytest.fixture
def _compiled() -> None:
    """Skip where a CPU's operator cannot be compiled."""
    if not INTERPRETED and shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")


def new_engine(case: Case, *, fused: bool) -> Engine:
    config, scheme, dtype, kind = case
    reader = sharded(tiny_weights(config), own_rank())
    model = build_model(reader, dtype=dtype, device=CPU)
    if scheme is not None:
        model = quantize_model(model, scheme, kernels="native")
    options = {"cache_size": 24, "batch_size": 2, "kv_cache": kind}
    made = engine(model, **options, fused=fused)
    if fused:
        step = FusedCpuStep if not INTERPRETED else fused_step()
        assert isinstance(made._fused, step)
    return made


def fused_step() -> type:
    from llama_perf.llama.fused import FusedStep

    return FusedStep


def outputs(case: Case, *, fused: bool) -> list[Tensor]:
    """Logits after a prompt and in a step, and what the caches hold."""
    own = new_engine(case, fused=fused)
    with torch.no_grad():
        first = own.prefill(PROMPT)
        second = own.decode(PROMPT[:, :1], torch.tensor([2]))
    return [first, second, *own.caches[0].dequantized()]


def check_outputs(case: Case, pool: RankPool) -> None:
    _, scheme, dtype, kind = case
    first, second, *held = outputs(case, fused=False)
    limit = max(limit_of(scheme, dtype), 0.0 if kind is None else TURNED_CODES[kind])
    of_ranks = pool.run(partial(outputs, case, fused=True))
    for ours in of_ranks:
        assert distance(ours[0], first) < limit
        assert distance(ours[1], second) < limit
    # Each rank has half of the heads.
    for index, whole in enumerate(held, 2):
        united = torch.cat([ours[index] for ours in of_ranks], dim=1)
        assert distance(united, whole) < limit


# In the interpreter, which takes seconds for each, one of each kind of sums.
@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize(
    ("any_device", "case"),
    [
        *(("cpu", case) for case in CASES),
        *(("interpreter", case) for case in CASES[:3]),
    ],
    indirect=["any_device"],
    ids=lambda value: str(value[1:]) if isinstance(value, tuple) else value,
)
def test_a_prompt_and_a_step_are_those_of_one_process(
    case: Case, any_device: torch.device, rank_pool: Callable[[int], RankPool]
) -> None:
    assert any_device == CPU
    check_outputs(case, rank_pool(2))


@pytest.mark.usefixtures("_compiled")
def test_biases_are_added_once(rank_pool: Callable[[int], RankPool]) -> None:
    """Only a CPU's operator takes those of the attention's output and of down."""
    check_outputs((BIASED, "int8wo", torch.float32, None), rank_pool(2))


def sampled(*, fused: bool) -> list[Tensor]:
    own = new_engine((CONFIG, None, torch.float32, None), fused=fused)
    request: Request = {"max_new_tokens": 4, "sampling": DRAWS}
    return [own.generate(PROMPT, **request), own.generate(PROMPT, **request)]


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("any_device", ["cpu", "interpreter"], indirect=True)
def test_draws_choose_the_tokens_of_one_process(
    any_device: torch.device, rank_pool: Callable[[int], RankPool]
) -> None:
    """In the interpreter one kernel chooses, of the whole vocabulary."""
    assert any_device == CPU
    wanted = sampled(fused=True)
    for ours in rank_pool(2).run(partial(sampled, fused=True)):
        assert all(map(torch.equal, ours, wanted))
