"""Attention to the filled positions of a cache: y = softmax(q K^T / sqrt(D)) V.

`decode_attention`: one query a sequence, which sees as many of the cache's first
positions as a tensor on the device says. `prefill_attention`: the queries of the last
T of `end` positions, causally. Neither repeats the cache for grouped queries, builds
a mask of all positions, or keeps a dequantized copy: of codes the scales are
multiplied into the scores and the probabilities, or a few heads are dequantized at a
time. Knows no model and no cache class. The kernel on CUDA is `triton_attention`.

Legend: B batch, T queries of a sequence, H heads of the cache, G query heads for each
of them, S positions allocated, L filled, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels import cache_codes
from llama_perf.kernels.cache_codes import CachedTensors

# Values dequantized at a time: in decoding what the cache that cores share holds as
# float32, in a prefill 4 MB of 16-bit keys and as many values.
_STRETCH = 1 << 20
PIECE = 1 << 21
# Positions at a time, at least, unless a head alone is more: fewer keep no card busy.
POSITIONS = 1 << 10
# Elements of the mask of some queries, for a CPU, which wants one in float32.
_MASK = 1 << 21


@torch.library.custom_op("llama_perf::decode_attention", mutates_args=())
def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    split_counter: Tensor,
    filled: Tensor,
) -> Tensor:
    """(B, 1, H * G, D) of `q`, the same, in its dtype.

    Caches are (B, H, S, D), scales (B, H, S), `filled` int64 (B,) or (1,) for all of
    them, each 1 to S. `split_counter`, int32 (B * H,) of zeros, is left zeros: on a GPU
    the programs that share a head count themselves in it.
    """
    del split_counter
    lengths = filled.tolist()
    if len(lengths) == 1:
        return _decode(q, k_cache, v_cache, k_scale, v_scale, lengths[0])
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for index, length in enumerate(lengths):
        one = slice(index, index + 1)
        out[one] = _decode(
            q[one],
            k_cache[one],
            v_cache[one],
            None if k_scale is None else k_scale[one],
            None if v_scale is None else v_scale[one],
            length,
        )
    return out


@decode_attention.register_fake
def _(q: Tensor, *_rest: Tensor | None) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@decode_attention.register_kernel("cuda")
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    split_counter: Tensor,
    filled: Tensor,
) -> Tensor:
    from llama_perf.kernels.triton.launch_attention import split_attention

    cache = CachedTensors(k=k_cache, v=v_cache, k_scale=k_scale, v_scale=v_scale)
    return split_attention(q, cache, split_counter, filled)


def _decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    length: int,
) -> Tensor:
    batch, heads, _, width = k_cache.shape
    # The queries of a head of the cache stand as if they were so many positions.
    grouped = q.reshape(batch, heads, -1, width)
    if k_scale is None or v_scale is None:
        k, v = k_cache[:, :, :length], v_cache[:, :, :length]
        out = F.scaled_dot_product_attention(grouped, k, v)
    else:
        caches = (k_cache, v_cache, k_scale, v_scale)
        parts = (each.flatten(0, 1)[:, :length] for each in caches)
        out = _decode_codes(grouped.flatten(0, 1).float(), *parts)
    return out.to(q.dtype).reshape(q.shape)


def _decode_codes(
    q: Tensor, k: Tensor, v: Tensor, k_scale: Tensor, v_scale: Tensor
) -> Tensor:
    """(B * H, G, D) in float32 over codes (B * H, L, D), a stretch at a time."""
    heads, length, width = k.shape
    step = max(_STRETCH // (heads * width), 1)
    room = q.new_empty(heads * min(step, length) * width)

    def decoded(codes: Tensor) -> Tensor:
        return cache_codes.decoded(codes, room[: codes.numel()].view(codes.shape))

    parts = [
        torch.bmm(q, decoded(k[:, some]).transpose(1, 2))
        for some in _stretches(length, step)
    ]
    scores = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    unit = cache_codes.UNIT[k.dtype]
    scores.mul_(k_scale.unsqueeze(1)).mul_(unit * width**-0.5)
    weights = scores.softmax(-1).mul_(v_scale.unsqueeze(1))
    out: Tensor | None = None
    for some in _stretches(length, step):
        weight, value = weights[:, :, some], decoded(v[:, some])
        if out is None:
            out = torch.bmm(weight, value)
        else:
            out.baddbmm_(weight, value)
    assert out is not None, "no position is filled"
    return out.mul_(unit)


def _stretches(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


@torch.library.custom_op("llama_perf::prefill_attention", mutates_args=())
def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    end: int,
) -> Tensor:
    """(B, T, H * G, D) of `q`, the same, whose positions are the last T before `end`.

    Caches and scales as for `decode_attention`; all positions before `end` are filled.
    """
    batch, tokens = q.shape[:2]
    heads, width = k_cache.shape[1], k_cache.shape[3]
    # Sequences and heads of the cache are one dimension: (B * H, G, T, D).
    grouped = (
        q.view(batch, tokens, heads, -1, width).permute(0, 2, 3, 1, 4).flatten(0, 1)
    )
    k, v = (each.flatten(0, 1)[:, :end] for each in (k_cache, v_cache))
    if k_scale is None or v_scale is None:
        out = _causal(grouped, k, v)
    else:
        held = (k, v, *(each.flatten(0, 1)[:, :end] for each in (k_scale, v_scale)))
        out = torch.empty_like(grouped)
        heads_at_a_time, positions = at_a_time(len(k), width, tokens)
        for some in _stretches(len(k), heads_at_a_time):
            parts = (each[some] for each in held)
            out[some] = _causal_behind_codes(grouped[some], *parts, step=positions)
    out = out.view(batch, heads, -1, tokens, width).permute(0, 3, 1, 2, 4)
    return out.reshape(q.shape).contiguous()


@prefill_attention.register_fake
def _(q: Tensor, *_rest: Tensor | int | None) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def at_a_time(heads: int, width: int, tokens: int) -> tuple[int, int]:
    """Heads and positions of a cache of codes that a prefill dequantizes at a time.

    `tokens` are those of the chunk, which are one piece.
    """
    positions = max(PIECE // (heads * width), min(POSITIONS, PIECE // width), 1)
    longest = max(positions, tokens)
    return min(max(PIECE // (longest * width), 1), heads), positions


def _causal_behind_codes(
    q: Tensor, k: Tensor, v: Tensor, k_scale: Tensor, v_scale: Tensor, *, step: int
) -> Tensor:
    """As `_causal` over codes (N, L, D), `step` positions dequantized at a time.

    Each piece's attention is merged with those before it by the logarithms of their
    softmax's sums (Rabe and Staats 2021, "Self-attention does not need O(n^2) memory").
    The queries' own positions are the last piece, causal among themselves.
    """
    behind = k.shape[1] - q.shape[2]
    pieces = [
        slice(start, min(start + step, behind)) for start in range(0, behind, step)
    ]
    out: Tensor | None = None
    sums: Tensor | None = None
    for some in (*pieces, slice(behind, k.shape[1])):
        key, value = (
            cache_codes.dequantized_by_positions(
                codes[:, some], scale[:, some], q.dtype
            )
            for codes, scale in ((k, k_scale), (v, v_scale))
        )
        part, part_sums = _with_sums(q, key, value, causal=some.start == behind)
        # Else the next ones would be made beside them.
        del key, value
        if out is None or sums is None:
            out, sums = part.float(), part_sums
            continue
        both = torch.logaddexp(sums, part_sums)
        out.mul_((sums - both).exp_().unsqueeze(-1))
        out.addcmul_(part, (part_sums - both).exp_().unsqueeze(-1))
        sums = both
    assert out is not None, "a chunk has queries"
    return out.to(q.dtype)


def _with_sums(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention of (N, G, T, D) to (N, L, D), and log sum exp of its scores (N, G, T).

    Through the operators behind `scaled_dot_product_attention`, which keeps the sums
    to itself.
    """
    k, v = (each.unsqueeze(1).expand(-1, q.shape[1], -1, -1) for each in (k, v))
    aten = torch.ops.aten
    if q.device.type == "cpu":
        fused = aten._scaled_dot_product_flash_attention_for_cpu
        out, sums = fused(q, k, v, 0.0, causal)
    elif q.dtype == torch.float32:
        fused = aten._scaled_dot_product_efficient_attention
        out, sums, *_ = fused(q, k, v, None, True, 0.0, causal)
    else:
        fused = aten._scaled_dot_product_flash_attention
        out, sums, *_ = fused(q, k, v, 0.0, causal)
    # Some pad the queries of their sums.
    return out, sums[:, :, : q.shape[2]].float()


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Leave cuDNN out of what `scaled_dot_product_attention` chooses from.

    It comes first on sm_90, builds a plan for each new length of a prompt, and is not
    checked for keys that stand for several heads by a stride of 0.
    """
    backends = torch.backends.cuda
    before = backends.cudnn_sdp_enabled()
    backends.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        backends.enable_cudnn_sdp(before)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(N, G, T, D) of the last T of the L positions of `k` and `v`, (N, L, D)."""
    groups, tokens, end = q.shape[1], q.shape[2], k.shape[1]
    k, v = k.unsqueeze(1), v.unsqueeze(1)
    on_card = q.device.type == "cuda"
    if on_card and q.dtype == torch.float32:
        # There no attention that keeps no scores takes grouped queries: a view.
        k, v = (each.expand(-1, groups, -1, -1) for each in (k, v))
    if tokens == end:
        return _attend(q, k, v, causal=True)
    if on_card:
        # It brings the compiler along, which takes two seconds of every start.
        from torch.nn.attention.bias import causal_lower_right

        return _attend(q, k, v, causal_lower_right(tokens, end))
    out = torch.empty_like(q)
    step = max(_MASK // end, 1)
    for some in _stretches(tokens, step):
        queries = q[:, :, some]
        seen = end - tokens + min(some.stop, tokens)
        mask = torch.ones(queries.shape[2], seen, dtype=torch.bool)
        mask = mask.tril_(seen - queries.shape[2])
        out[:, :, some] = _attend(queries, k[:, :, :seen], v[:, :, :seen], mask)
    return out


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """The library's attention, but for cuDNN's, of as many or fewer heads of keys."""
    grouped = q.shape[1] != k.shape[1]
    with without_cudnn():
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal, enable_gqa=grouped
        )
