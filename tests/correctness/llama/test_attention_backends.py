"""What reaches `scaled_dot_product_attention`: no head of stride 0, and no cuDNN.

Of grouped queries in every path of the engine, with the kernels of a CPU and, by fake
tensors, as a card would be asked.
"""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import bias

from llama_perf.kernels import attention as cached_attention
from tests.correctness.support.tiny_engine import engine, greedy, model, tokens

CALL = F.scaled_dot_product_attention
# It stands for `causal_lower_right`, whose choice of a kernel asks a card.
LOWER_RIGHT = object()


class Call(NamedTuple):
    """One call of `scaled_dot_product_attention`."""

    heads: tuple[int, int]
    # Of the head dimension, where there is more than one head.
    strides: list[int]
    cudnn: bool


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    seen: list[Call] = []

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, **rest: Any) -> Tensor:
        strides = [tensor.stride(1) for tensor in (q, k, v) if tensor.shape[1] > 1]
        cudnn = torch.backends.cuda.cudnn_sdp_enabled()
        seen.append(Call((q.shape[1], k.shape[1]), strides, cudnn))
        if mask is LOWER_RIGHT:
            return torch.empty_like(q)
        return CALL(q, k, v, rest.pop("attn_mask", mask), **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", call)
    return seen


@pytest.mark.parametrize("kind", [None, "int8"])
@pytest.mark.parametrize("path", ["decode", "sdpa"])
@pytest.mark.parametrize("chunk", [None, 7])
def test_every_path_asks_for_groups_without_cudnn(
    calls: list[Call], kind: str | None, path: str, chunk: int | None
) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    one = engine(cache_size=40, kv_cache=kind, attention=path, prefill_chunk=chunk)
    prompt = tokens(length=20)
    greedy(one, prompt, 3)
    one.fill(prompt)
    greedy(one, prompt[:, :5], 3)
    model().logits(prompt)
    assert calls
    assert all(0 not in call.strides and not call.cudnn for call in calls)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("behind", [0, 30])
def test_a_card_is_asked_for_groups_in_16_bits(
    monkeypatch: pytest.MonkeyPatch, calls: list[Call], dtype: torch.dtype, behind: int
) -> None:
    monkeypatch.setattr(bias, "causal_lower_right", lambda *_size: LOWER_RIGHT)
    with FakeTensorMode():
        q = torch.empty(2, 4, 20, 64, device="cuda", dtype=dtype)
        cached = torch.empty(2, 20 + behind, 64, device="cuda", dtype=dtype)
        cached_attention._causal(q, cached, cached)
    (actual,) = calls
    assert actual.heads == (4, 1)
    assert 0 not in actual.strides
