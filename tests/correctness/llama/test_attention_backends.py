"""What reaches `scaled_dot_product_attention`: no head of stride 0, and no cuDNN.

Of grouped queries in every path of the engine, with the kernels of a CPU and, by fake
tensors, as a card would be asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import bias

from llama_perf.checkpoints.load import build_model
from llama_perf.kernels import attention as cached_attention
from llama_perf.llama.compiler import compiler_settings
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.sampling import GREEDY
from tests.correctness.support.weights_samples import TINY, tiny_weights

CALL = F.scaled_dot_product_attention
# It stands for `causal_lower_right`, whose choice of a kernel asks a card.
LOWER_RIGHT = object()


class Call:
    """One call of `scaled_dot_product_attention`."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.heads = (q.shape[1], k.shape[1])
        # Of the head dimension, where there is more than one head.
        self.strides = [call.stride(1) for call in (q, k, v) if call.shape[1] > 1]
        self.cudnn = torch.backends.cuda.cudnn_sdp_enabled()


@contextmanager
def seen_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    calls: list[Call] = []

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, **rest: Any) -> Tensor:
        calls.append(Call(q, k, v))
        if mask is LOWER_RIGHT:
            return torch.empty_like(q)
        return CALL(q, k, v, rest.pop("attn_mask", mask), **rest)

    with monkeypatch.context() as patched:
        patched.setattr(F, "scaled_dot_product_attention", call)
        yield calls


@pytest.mark.parametrize("kind", [None, "int8"])
@pytest.mark.parametrize("path", ["decode", "sdpa"])
@pytest.mark.parametrize("chunk", [None, 7])
def test_every_path_asks_for_groups_without_cudnn(
    monkeypatch: pytest.MonkeyPatch, kind: str | None, path: str, chunk: int | None
) -> None:
    model = build_model(tiny_weights(), dtype=torch.float32, device=torch.device("cpu"))
    prompt = torch.arange(20)[None] % TINY.vocab_size
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with seen_calls(monkeypatch) as calls:
        engine = Engine(
            model,
            EngineOptions(
                cache_size=40, kv_cache=kind, attention=path, prefill_chunk=chunk
            ),
        )
        engine.generate(prompt, max_new_tokens=3, sampling=GREEDY)
        engine.fill(prompt)
        engine.generate(prompt[:, :5], max_new_tokens=3, sampling=GREEDY)
        model.logits(prompt)
    assert calls
    assert all(0 not in call.strides for call in calls)
    assert not any(call.cudnn for call in calls)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("behind", [0, 30])
def test_a_card_is_asked_for_groups_in_16_bits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, behind: int
) -> None:
    monkeypatch.setattr(bias, "causal_lower_right", lambda *_size: LOWER_RIGHT)
    with seen_calls(monkeypatch) as calls, FakeTensorMode():
        q = torch.empty(2, 4, 20, 64, device="cuda", dtype=dtype)
        cached = torch.empty(2, 20 + behind, 64, device="cuda", dtype=dtype)
        cached_attention._causal(q, cached, cached)
    (actual,) = calls
    assert actual.heads == (4, 1)
    assert 0 not in actual.strides


@pytest.mark.parametrize("path", ["decode", "sdpa"])
def test_a_compiled_block_has_no_break_for_it(path: str) -> None:
    from torch._dynamo.utils import counters

    model = build_model(tiny_weights(), dtype=torch.float32, device=torch.device("cpu"))
    prompt = torch.arange(9)[None]
    options: dict[str, Any] = {"cache_size": 40, "attention": path}
    eager = Engine(model, EngineOptions(**options))
    expected = eager.generate(prompt, max_new_tokens=4, sampling=GREEDY)
    with compiler_settings():
        engine = Engine(
            model, EngineOptions(compile=True, compile_prefill=True, **options)
        )
        actual = engine.generate(prompt, max_new_tokens=4, sampling=GREEDY)
        assert not counters["graph_break"]
    assert torch.equal(actual, expected)
