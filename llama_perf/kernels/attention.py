"""Attention to the filled positions of a cache: y = softmax(q K^T / sqrt(D)) V.

`decode_attention`: one query a sequence, which sees as many of the cache's first
positions as a tensor on the device says. `prefill_attention`: the queries of the last
T of `end` positions, causally. With a `window` other than 0 a query sees only the last
`window` of these positions. Neither repeats the cache for grouped queries, builds
a mask of all positions, or stores a dequantized copy: the scales of codes are
multiplied into the scores and the probabilities, or a few heads are dequantized at a
time. Knows no model and no cache class. The kernel on CUDA is `triton/attention.py`.

Legend: B batch, T queries of a sequence, H heads of the cache, G query heads for each
of them, N heads of all sequences, S positions allocated, L filled, D head width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_perf.kernels import cache_codes, cpp_library
from llama_perf.kernels.cache_codes import CachedTensors

# Values dequantized at a time: in decoding what the cache that cores share holds as
# float32, in a prefill 4 MB of 16-bit keys and as many values.
_STRETCH = 1 << 20
PIECE = 1 << 21
# Fewer positions at a time keep no GPU busy, unless one head alone fills a piece.
MIN_POSITIONS = 1 << 10
# Elements of the mask of some queries, for a CPU, which wants one in float32.
_MASK = 1 << 21


torch.library.define(
    "llama_perf::decode_attention",
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor? k_scale, Tensor? v_scale,"
    " Tensor split_counter, Tensor filled, int window=0) -> Tensor",
)
decode_attention = torch.ops.llama_perf.decode_attention.default
"""The result, as `q` (B, 1, H * G, D), in its dtype.

Caches are (B, H, S, D), scales (B, H, S); `filled`, 1 to S, is int64 (B,), or (1,)
for all sequences. `split_counter`, int32 (B * H,) of zeros, is left zeros: on a GPU
the programs that share a head count themselves in it. On a CPU it is
`cpp/attention.cpp`.
"""


@torch.library.impl("llama_perf::decode_attention", "default")
def _(q: Tensor, *rest: Any) -> Tensor:
    if cpp_library.load() is None:
        # Torch knows it from now on.
        out: Tensor = decode_attention(q, *rest)
        return out
    return in_plain_torch(q, *rest)


def in_plain_torch(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    _split_counter: Tensor,
    filled: Tensor,
    window: int = 0,
) -> Tensor:
    """`decode_attention` on a CPU without a compiler."""
    cache = CachedTensors(k_cache, v_cache, k_scale, v_scale)
    lengths = filled.tolist()
    if len(lengths) == 1:
        return _decode(q, cache, lengths[0], window)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for index, length in enumerate(lengths):
        sequence = slice(index, index + 1)
        out[sequence] = _decode(q[sequence], cache.of(sequence), length, window)
    return out


def decode_on_gpu(q: Tensor, *rest: Any) -> Tensor:
    """`decode_attention` by Triton."""
    from llama_perf.kernels.triton.launch_attention import split_attention

    *cache, split_counter, filled = rest[:6]
    window = rest[6] if len(rest) > 6 else 0
    where = CachedTensors(*cache), split_counter, filled
    return split_attention(q, *where, window=window)


torch.library.impl("llama_perf::decode_attention", "CUDA", decode_on_gpu)


def _decode(q: Tensor, cache: CachedTensors, length: int, window: int) -> Tensor:
    batch, heads, _, width = cache.k.shape
    start = max(length - window, 0) if window else 0
    # The queries of a head of the cache stand as if they were so many positions.
    grouped = q.reshape(batch, heads, -1, width)
    if cache.kind is None:
        k, v = cache.k[:, :, start:length], cache.v[:, :, start:length]
        out = F.scaled_dot_product_attention(grouped, k, v)
    else:
        filled = cache.by_head(length, start)
        out = _decode_codes(grouped.flatten(0, 1).float(), filled)
    return out.to(q.dtype).reshape(q.shape)


def _decode_codes(q: Tensor, cache: CachedTensors) -> Tensor:
    """(N, G, D) in float32 over codes (N, L, D), a stretch at a time."""
    heads, length, width = cache.k.shape
    step = max(_STRETCH // (heads * width), 1)
    room = q.new_empty(heads * min(step, length) * width)

    def decoded(codes: Tensor) -> Tensor:
        return cache_codes.decoded(codes, room[: codes.numel()].view(codes.shape))

    scores_of_parts = [
        torch.bmm(q, decoded(cache.k[:, stretch]).transpose(1, 2))
        for stretch in _stretches(length, step)
    ]
    # One part needs no copy.
    one = len(scores_of_parts) == 1
    scores = scores_of_parts[0] if one else torch.cat(scores_of_parts, -1)
    _, _, k_scale, v_scale = cache.pointers
    unit = cache_codes.UNIT[cache.k.dtype]
    scores.mul_(k_scale.unsqueeze(1)).mul_(unit * width**-0.5)
    weights = scores.softmax(-1).mul_(v_scale.unsqueeze(1))
    first, *others = _stretches(length, step)
    out = torch.bmm(weights[:, :, first], decoded(cache.v[:, first]))
    for stretch in others:
        out.baddbmm_(weights[:, :, stretch], decoded(cache.v[:, stretch]))
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
    window: int = 0,
) -> Tensor:
    """The result, as `q` (B, T, H * G, D), whose positions are the last T before `end`.

    Caches and scales as for `decode_attention`; all positions before `end` are filled.
    """
    batch, tokens = q.shape[:2]
    heads, width = k_cache.shape[1], k_cache.shape[3]
    # Sequences and heads of the cache are one dimension: (B * H, G, T, D).
    grouped = q.view(batch, tokens, heads, -1, width).permute(0, 2, 3, 1, 4)
    grouped = grouped.flatten(0, 1)
    cache = CachedTensors(k_cache, v_cache, k_scale, v_scale)
    if 0 < window < end:
        out = _causal_in_window(grouped, cache, end, window)
    elif cache.kind is None:
        out = _causal(grouped, *cache.by_head(end)[:2])
    else:
        cache = cache.by_head(end)
        out = torch.empty_like(grouped)
        heads_at_a_time, step = at_a_time(len(cache.k), width, tokens)
        for some in _stretches(len(cache.k), heads_at_a_time):
            out[some] = _causal_behind_codes(grouped[some], cache.of(some), step)
    out = out.view(batch, heads, -1, tokens, width).permute(0, 3, 1, 2, 4)
    return out.reshape(q.shape).contiguous()


@torch.library.register_fake("llama_perf::decode_attention")  # type: ignore[untyped-decorator]
@prefill_attention.register_fake
def _(q: Tensor, *_rest: Tensor | int | None) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _causal_in_window(q: Tensor, cache: CachedTensors, end: int, window: int) -> Tensor:
    """(N, G, T, D) of the last T of `end` positions of (B, H, S, D), N = B * H.

    Some queries at a time see the keys that their windows span, under a mask; of codes
    some heads at a time are dequantized.
    """
    out, tokens, width = torch.empty_like(q), q.shape[2], q.shape[3]
    for some in _stretches(tokens, window_step(window)):
        queries = q[:, :, some]
        count = queries.shape[2]
        last = end - tokens + some.start + count
        first = max(last - count + 1 - window, 0)
        mask = torch.ones(count, last - first, dtype=torch.bool, device=q.device)
        # The diagonal of the queries' own positions, and that of their oldest ones.
        own = last - count - first
        mask = mask.tril_(own).triu_(own - window + 1)
        spanned = cache.by_head(last, first)
        heads_at_a_time = len(q)
        if cache.kind is not None:
            heads_at_a_time = window_heads(len(q), width, last - first)
        for heads in _stretches(len(q), heads_at_a_time):
            k, v = spanned.k[heads], spanned.v[heads]
            if cache.kind is not None:
                k, v = spanned.of(heads).dequantized(slice(None), q.dtype)
            # No attention that stores no scores takes grouped queries under a mask.
            k, v = (x.unsqueeze(1).expand(-1, q.shape[1], -1, -1) for x in (k, v))
            out[heads, :, some] = _attend(queries[heads], k, v, mask)
    return out


def window_step(window: int) -> int:
    """Queries whose windows are attended to at a time."""
    return max(min(_MASK // (2 * window), MIN_POSITIONS), 1)


def window_heads(heads: int, width: int, positions: int) -> int:
    """Heads of a cache of codes that are dequantized at a time, of `heads`."""
    return min(max(PIECE // (positions * width), 1), heads)


def at_a_time(heads: int, width: int, tokens: int) -> tuple[int, int]:
    """Heads and positions of a cache of codes that a prefill dequantizes at a time.

    `tokens` are those of the chunk, which are one piece.
    """
    positions = max(PIECE // (heads * width), min(MIN_POSITIONS, PIECE // width), 1)
    longest = max(positions, tokens)
    return min(max(PIECE // (longest * width), 1), heads), positions


def _causal_behind_codes(q: Tensor, cache: CachedTensors, step: int) -> Tensor:
    """As `_causal` over codes (N, L, D), `step` positions dequantized at a time.

    Each piece's attention is merged with those before it by the logarithms of their
    softmax's sums (Rabe and Staats 2021, "Self-attention does not need O(n^2) memory").
    The queries' own positions are the last piece, causal among themselves.
    """
    length = cache.k.shape[1]
    behind = length - q.shape[2]
    out: Tensor | None = None
    sums: Tensor | None = None
    for start, end in pairwise((*range(0, behind, step), behind, length)):
        key, value = cache.dequantized(slice(start, end), q.dtype)
        part, part_sums = _with_sums(q, key, value, causal=start == behind)
        # Otherwise the next piece's would be made while these still take memory.
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

    By the operators behind `scaled_dot_product_attention`, which does not return the
    sums.
    """
    k, v = (x.unsqueeze(1).expand(-1, q.shape[1], -1, -1) for x in (k, v))
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
    # Some operators pad the queries of their sums.
    return out, sums[:, :, : q.shape[2]].float()


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Keep `scaled_dot_product_attention` from choosing cuDNN.

    cuDNN comes first on sm_90, builds a plan for each new length of a prompt, and is
    not tested with keys that serve several heads by a stride of 0.
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
    on_gpu = q.device.type == "cuda"
    if on_gpu and q.dtype == torch.float32:
        # Here no attention that stores no scores takes grouped queries: use a view.
        k, v = (x.expand(-1, groups, -1, -1) for x in (k, v))
    if tokens == end:
        return _attend(q, k, v, causal=True)
    if on_gpu:
        # This import brings the compiler along, which costs two seconds at every start.
        from torch.nn.attention.bias import causal_lower_right

        return _attend(q, k, v, causal_lower_right(tokens, end))
    out = torch.empty_like(q)
    step = max(_MASK // end, 1)
    for some in _stretches(tokens, step):
        queries = q[:, :, some]
        visible = end - tokens + min(some.stop, tokens)
        mask = torch.ones(queries.shape[2], visible, dtype=torch.bool)
        mask = mask.tril_(visible - queries.shape[2])
        out[:, :, some] = _attend(queries, k[:, :, :visible], v[:, :, :visible], mask)
    return out


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """The library's attention without cuDNN; keys may have fewer heads than queries."""
    grouped = q.shape[1] != k.shape[1]
    with without_cudnn():
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal, enable_gqa=grouped
        )
