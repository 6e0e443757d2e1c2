"""The operators over a cache, compared with dense float64 attention; their memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels import attention as cached_attention
from llama_perf.kernels import cache_codes
from llama_perf.kernels.attention import decode_attention, prefill_attention
from tests.correctness.support.live_bytes import LiveBytes

KINDS = {"unquantized": None, "int8": cache_codes.INT8, "fp8": cache_codes.FP8}
LENGTHS = (1, 2, 255, 256, 257, 300)
SIZE = 300
# Rounding of the sums, and of the result in the dtype.
LIMITS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


Cache = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def sample_cache(
    kind: str, dtype: torch.dtype, *, batch: int, heads: int, width: int
) -> Cache:
    """A cache of SIZE positions, all of them written."""
    k, v = (drawn(batch, heads, SIZE, width, seed=seed, dtype=dtype) for seed in (0, 1))
    codes = KINDS[kind]
    if codes is None:
        return k, v, None, None
    (k, k_scale), (v, v_scale) = (cache_codes.quantize(x, codes) for x in (k, v))
    return k, v, k_scale, v_scale


def dense(q: Tensor, cache: Cache, ends: list[int]) -> Tensor:
    """(B, T, heads, D) in float64 from what the cache holds, by the formula."""
    wide = []
    for values, scale in zip(cache[:2], cache[2:], strict=True):
        if scale is None:
            wide.append(values.double())
        else:
            wide.append(cache_codes.dequantized(values, scale, torch.float32).double())
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[1], 1) for x in wide)
    out = torch.empty(q.shape, dtype=torch.float64)
    for row in range(len(q)):
        for token in range(q.shape[1]):
            seen = ends[row] - q.shape[1] + token + 1
            scores = torch.einsum(
                "hd,hnd->hn", q[row, token].double(), k[row, :, :seen]
            )
            weights = (scores * q.shape[3] ** -0.5).softmax(-1)
            out[row, token] = torch.einsum("hn,hnd->hd", weights, v[row, :, :seen])
    return out


@pytest.mark.parametrize("tokens", [7, 300], ids=["chunk", "prompt"])
def test_a_prefill_never_reaches_cudnn(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be first on sm_90, with keys whose heads have a stride of 0."""
    attend, allowed = F.scaled_dot_product_attention, []

    def watched(*arguments: Any, **options: Any) -> Tensor:
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    cache = sample_cache("unquantized", torch.float32, batch=1, heads=2, width=16)
    q = drawn(1, tokens, 8, 16, seed=2)
    prefill_attention(q, *cache, SIZE)
    assert allowed
    assert not any(allowed)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def split_counter(cache: Cache) -> Tensor:
    return torch.zeros(cache[0].shape[0] * cache[0].shape[1], dtype=torch.int32)


def assert_equal(attended: Tensor, expected: Tensor) -> None:
    limit = LIMITS[attended.dtype]
    torch.testing.assert_close(attended.double(), expected, rtol=limit, atol=limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize(("group", "width"), [(1, 64), (3, 64), (4, 128), (8, 8)])
def test_decoding_is_dense_attention_to_the_filled_positions(
    kind: str, dtype: torch.dtype, group: int, width: int
) -> None:
    cache = sample_cache(kind, dtype, batch=2, heads=2, width=width)
    q = drawn(2, 1, 2 * group, width, seed=2, dtype=dtype)
    for length in LENGTHS:
        attended = decode_attention(
            q, *cache, split_counter(cache), torch.tensor([length])
        )
        assert_equal(attended, dense(q, cache, [length, length]))
    attended = decode_attention(q, *cache, split_counter(cache), torch.tensor([257, 3]))
    assert_equal(attended, dense(q, cache, [257, 3]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("group", "dtype"), [(1, torch.float32), (3, torch.bfloat16)])
def test_a_chunk_is_causal_behind_what_is_filled(
    kind: str, group: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several pieces of the cache, and masks of few queries.
    monkeypatch.setattr(cached_attention, "PIECE", 2 * SIZE * 16)
    monkeypatch.setattr(cached_attention, "_MASK", 20 * SIZE)
    cache = sample_cache(kind, dtype, batch=2, heads=3, width=16)
    for tokens, end in ((1, 1), (7, 7), (1, 256), (45, 257), (44, SIZE), (SIZE, SIZE)):
        q = drawn(2, tokens, 3 * group, 16, seed=3, dtype=dtype)
        attended = prefill_attention(q, *cache, end)
        assert_equal(attended, dense(q, cache, [end, end]))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_codes_in_several_stretches_are_those_in_one(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = sample_cache(kind, torch.float32, batch=1, heads=2, width=64)
    q = drawn(1, 1, 6, 64, seed=2)
    monkeypatch.setattr(cached_attention, "_STRETCH", 2 * 64 * 31)
    attended = decode_attention(q, *cache, split_counter(cache), torch.tensor([257]))
    assert_equal(attended, dense(q, cache, [257]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_operators_are_sound(kind: str) -> None:
    cache = sample_cache(kind, torch.float32, batch=2, heads=2, width=16)
    counter = split_counter(cache)
    checks = {
        decode_attention: (drawn(2, 1, 4, 16, seed=2), *cache, counter),
        prefill_attention: (drawn(2, 5, 4, 16, seed=2), *cache),
    }
    for operator, arguments in checks.items():
        for last in (
            (torch.tensor([9, 300]), torch.tensor([7]))
            if operator is decode_attention
            else (5, 40)
        ):
            torch.library.opcheck(operator, (*arguments, last))
    assert not counter.any()


@pytest.mark.parametrize("kind", KINDS)
def test_no_copy_of_the_cache_is_made(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_attention, "_STRETCH", 2 * 64 * 10)
    monkeypatch.setattr(cached_attention, "PIECE", 1)
    monkeypatch.setattr(cache_codes, "WIDENED", 64 * 10)
    cache = sample_cache(kind, torch.float32, batch=1, heads=8, width=64)
    one_copy = 4 * cache[0].numel()
    # The cache itself counts too: its views are handed out.
    own = sum(tensor.nbytes for tensor in cache if tensor is not None)
    q = drawn(1, 1, 16, 64, seed=2)
    with LiveBytes("cpu") as live:
        cached_attention.decode_attention._init_fn(
            q, *cache, split_counter(cache), torch.tensor([SIZE])
        )
    assert 0 < live.peak - own < one_copy / 4
    with LiveBytes("cpu") as live:
        cached_attention.prefill_attention._init_fn(q, *cache, SIZE)
    # A head of keys and one of values, float32.
    assert 0 < live.peak - own < one_copy * 2 / 8 * 1.7
