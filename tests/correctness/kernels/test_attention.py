"""The operators over a cache, compared with dense float64 attention; their memory.

The kernel that decodes is interpreted on a CPU and runs for real on a card.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf.kernels import attention, cache_codes, cpp_library
from llama_perf.kernels.attention import decode_attention, prefill_attention
from llama_perf.measure.live_bytes import LiveBytes
from tests.correctness.support.kernel_samples import call

KINDS = {"unquantized": None, "int8": cache_codes.INT8, "fp8": cache_codes.FP8}
CPU = torch.device("cpu")
LENGTHS = (1, 2, 255, 256, 257, 300)
SIZE = 300
# Rounding of the sums, and of the result in the dtype.
LIMITS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
Cache = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
FLOAT = torch.float32
Case = tuple[str, int, int, int, torch.dtype]
# (kind, group, length, width, dtype): each pair of two of the values is there, not each
# combination of all of them.
CASES: list[Case] = [
    *(
        (kind, 1 + 2 * (at % 2), length, 64, (FLOAT, torch.float16)[at % 2])
        for at, (length, kind) in enumerate(product(LENGTHS, KINDS))
    ),
    *(
        ([*KINDS][(a + b) % 3], group, 130, width, FLOAT)
        for a, group in enumerate((1, 3, 4, 8))
        for b, width in enumerate((64, 128, 24))
    ),
    *(
        (kind, 1 + 3 * (at % 2), 200, 128, dtype)
        for at, (dtype, kind) in enumerate(product(LIMITS, KINDS))
    ),
]
each_kind = pytest.mark.parametrize("kind", KINDS)


def sample_cache(
    kind: str, *shape: int, dtype: torch.dtype = torch.float32
) -> tuple[Cache, Tensor]:
    """A cache (batch, heads, width) of SIZE written positions; its split counter."""
    batch, heads, width = shape
    k, v = torch.randn((2, batch, heads, SIZE, width), dtype=dtype)
    counter, codes = torch.zeros(batch * heads, dtype=torch.int32), KINDS[kind]
    if codes is None:
        return (k, v, None, None), counter
    (k, k_scale), (v, v_scale) = (cache_codes.quantize(x, codes) for x in (k, v))
    return (k, v, k_scale, v_scale), counter


def assert_decodes(
    kind: str,
    ends: Sequence[int],
    *,
    device: torch.device = CPU,
    group: int,
    width: int = 64,
    dtype: torch.dtype = FLOAT,
    window: int = 0,
) -> None:
    """A token of each sequence attends to its first positions, so many as `ends`.

    With a `window` to the last of these. One end is that of two sequences.
    """
    batch = max(len(ends), 2)
    cache, counter = sample_cache(kind, batch, 2, width, dtype=dtype)
    q, counter = torch.randn((batch, 1, 2 * group, width)).to(dtype), counter.to(device)
    filled = torch.tensor(ends)
    attended = call(device, decode_attention, q, *cache, counter, filled, window)
    assert_attends(attended, q, cache, *ends, window=window)
    assert not counter.any(), "the next call would wait for nobody"


def assert_attends(
    attended: Tensor, q: Tensor, cache: Cache, *ends: int, window: int = 0
) -> None:
    """`attended` is that of the formula, in float64, from what the cache holds."""
    batch, tokens, heads, width = q.shape
    k, v = (
        values.double()
        if scale is None
        else cache_codes.dequantized(values, scale, torch.float32).double()
        for values, scale in zip(cache[:2], cache[2:], strict=True)
    )
    k, v = (x.repeat_interleave(heads // k.shape[1], 1) for x in (k, v))
    scores = torch.einsum("bthd,bhnd->bthn", q.double(), k) * width**-0.5
    last = torch.tensor(ends).expand(batch)[:, None] - tokens + torch.arange(tokens)
    hidden = torch.arange(SIZE) > last[:, :, None, None]
    hidden |= torch.arange(SIZE) <= last[:, :, None, None] - (window or SIZE)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    expected, limit = torch.einsum("bthn,bhnd->bthd", weights, v), LIMITS[q.dtype]
    assert attended.dtype == q.dtype
    torch.testing.assert_close(attended.double(), expected, rtol=limit, atol=limit)


@each_kind
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize(("group", "width"), [(1, 64), (3, 64), (4, 128), (8, 8)])
def test_decoding_is_dense_attention_to_the_filled_positions(
    kind: str, dtype: torch.dtype, group: int, width: int
) -> None:
    for ends in (*((length,) for length in LENGTHS), (257, 3)):
        assert_decodes(kind, ends, group=group, width=width, dtype=dtype)


WINDOWS = (1, 7, 64, 100, 299, 300)


@each_kind
@pytest.mark.parametrize("window", WINDOWS)
def test_decoding_in_a_window_sees_its_last_positions(kind: str, window: int) -> None:
    for ends in (*((length,) for length in LENGTHS), (257, 3)):
        assert_decodes(kind, ends, group=3, window=window)


@pytest.mark.parametrize("plain", [False, True])
def test_plain_torch_has_windows_too(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain:
        monkeypatch.setattr(cpp_library, "load", lambda: "no compiler")
    cache, counter = sample_cache("int8", 2, 2, 64)
    q = torch.randn((2, 1, 6, 64))
    attend = attention.in_plain_torch if plain else decode_attention
    for filled in ([257], [300, 3]):
        given = (q, *cache, counter, torch.tensor(filled), 100)
        assert_attends(attend(*given), q, cache, *filled, window=100)


@pytest.mark.parametrize(
    ("kind", "window", "group"),
    [("unquantized", 1, 1), ("int8", 100, 3), ("fp8", 64, 1), ("unquantized", 299, 4)],
)
def test_a_kernel_has_windows_too(
    kind: str, window: int, group: int, card: torch.device
) -> None:
    for ends in ([SIZE], [257, 3]):
        assert_decodes(kind, ends, device=card, group=group, window=window)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_kernel_attends_to_the_same(case: Case, card: torch.device) -> None:
    kind, group, length, width, dtype = case
    how: Any = {"group": group, "width": width, "dtype": dtype}
    assert_decodes(kind, [length], device=card, **how)


@each_kind
@pytest.mark.parametrize("programs", [1, 8, 264])
def test_a_ragged_batch_in_few_and_many_splits(
    kind: str, programs: int, card: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_perf.kernels.triton import launch_attention

    monkeypatch.setattr(launch_attention, "_PROGRAMS", programs)
    monkeypatch.setattr(launch_attention, "multiprocessors", lambda: 1)
    for group in (1, 3):
        assert_decodes(kind, [SIZE, 1, 65], device=card, group=group)


@each_kind
@pytest.mark.parametrize(("group", "dtype"), [(1, torch.float32), (3, torch.bfloat16)])
def test_a_chunk_is_causal_behind_what_is_filled(
    kind: str, group: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several pieces of the cache, and masks of few queries.
    monkeypatch.setattr(attention, "PIECE", 2 * SIZE * 16)
    monkeypatch.setattr(attention, "_MASK", 20 * SIZE)
    cache, _ = sample_cache(kind, 2, 3, 16, dtype=dtype)
    for tokens, end in ((1, 1), (7, 7), (1, 256), (45, 257), (44, SIZE), (SIZE, SIZE)):
        q = torch.randn((2, tokens, 3 * group, 16), dtype=dtype)
        assert_attends(prefill_attention(q, *cache, end), q, cache, end)


@each_kind
@pytest.mark.parametrize("window", WINDOWS)
def test_a_chunk_in_a_window_sees_its_last_positions(
    kind: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some queries and some heads at a time.
    monkeypatch.setattr(attention, "MIN_POSITIONS", 20)
    monkeypatch.setattr(attention, "PIECE", 2 * SIZE * 16)
    cache, _ = sample_cache(kind, 2, 3, 16)
    for tokens, end in ((1, 1), (7, 7), (1, 256), (45, 257), (SIZE, SIZE)):
        q = torch.randn((2, tokens, 9, 16))
        attended = prefill_attention(q, *cache, end, window)
        assert_attends(attended, q, cache, end, window=window)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_codes_in_several_stretches_are_those_in_one(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_STRETCH", 2 * 64 * 31)
    assert_decodes(kind, [257], group=3)


@each_kind
def test_the_operators_are_sound(kind: str) -> None:
    cache, counter = sample_cache(kind, 2, 2, 16)
    decoding = (torch.randn((2, 1, 4, 16)), *cache, counter)
    for filled in ([9, 300], [7]):
        for window in ((), (6,)):
            inputs = (*decoding, torch.tensor(filled), *window)
            torch.library.opcheck(decode_attention, inputs)
    for end in (5, 40):
        torch.library.opcheck(
            prefill_attention, (torch.randn((2, 5, 4, 16)), *cache, end)
        )
        torch.library.opcheck(
            prefill_attention, (torch.randn((2, 5, 4, 16)), *cache, end, 6)
        )
    assert not counter.any()


@each_kind
def test_no_copy_of_the_cache_is_made(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_STRETCH", 2 * 64 * 10)
    monkeypatch.setattr(attention, "PIECE", 1)
    monkeypatch.setattr(cache_codes, "WIDENED", 64 * 10)
    cache, counter = sample_cache(kind, 1, 8, 64)
    one_copy = 4 * cache[0].numel()
    # The cache itself counts too: its views are handed out.
    own = sum(tensor.nbytes for tensor in cache if tensor is not None)
    q = torch.randn((1, 1, 16, 64))
    with LiveBytes("cpu") as live:
        attention.in_plain_torch(q, *cache, counter, torch.tensor([SIZE]))
    assert 0 < live.peak - own < one_copy / 4
    with LiveBytes("cpu") as live:
        prefill_attention._init_fn(q, *cache, SIZE)
    # A head of keys and one of values, float32.
    assert 0 < live.peak - own < one_copy * 2 / 8 * 1.7
