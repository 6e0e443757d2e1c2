"""The engine on both attention paths: every cache, chunks, filling, ragged batches.

Compared with one another, with a pass without a cache, and one by one.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import bias

from llama_perf import generate
from llama_perf.errors import UserError
from llama_perf.kernels import attention as cached_attention
from llama_perf.llama.attention import KVCache
from llama_perf.llama.engine import PREFILL_CHUNK
from llama_perf.llama.options import EngineOptions, Sampling
from llama_perf.measure.live_bytes import LiveBytes
from tests.correctness.support import engines
from tests.correctness.support.engines import SIZE, engine, greedy, model, tokens
from tests.correctness.support.errors import refusal
from tests.correctness.support.weights_samples import TINY

SDPA: dict[str, Any] = {"attention": "sdpa"}
PATHS: tuple[dict[str, Any], ...] = ({}, SDPA, {**SDPA, "linear_causal_mask": True})
CALL = F.scaled_dot_product_attention
# The tests replace `causal_lower_right` by it: to choose a kernel that asks a GPU.
LOWER_RIGHT = object()
each_cache = pytest.mark.parametrize("kind", [None, "int8", "fp8"])
Calls = list[tuple[tuple[int, int], list[int], bool]]
"""Of each: heads of queries and of keys, their strides, and whether cuDNN may run."""


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """No test's path asks for keys that serve heads by a stride of 0, or for cuDNN."""
    seen: Calls = []

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, **rest: Any) -> Tensor:
        strides = [tensor.stride(1) for tensor in (q, k, v) if tensor.shape[1] > 1]
        cudnn = torch.backends.cuda.cudnn_sdp_enabled()
        seen.append(((q.shape[1], k.shape[1]), strides, cudnn))
        if mask is LOWER_RIGHT:
            return torch.empty_like(q)
        return CALL(q, k, v, rest.pop("attn_mask", mask), **rest)

    before = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(F, "scaled_dot_product_attention", call)
    yield seen
    assert not any(0 in strides or cudnn for _, strides, cudnn in seen)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def assert_equal(results: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1, "logits near zero would prove nothing"
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


@each_cache
@pytest.mark.parametrize("prompt", [1, 254, 255, 256])
def test_every_path_and_chunk_gives_the_same_logits(
    kind: str | None, prompt: int, calls: Calls
) -> None:
    assert TINY.n_heads > TINY.n_kv_heads, "queries are grouped"
    ids, steps = tokens(batch=2), min(SIZE - prompt, 3)
    compared = [
        engine(batch_size=2, kv_cache=kind, prefill_chunk=chunk, **path)
        for path in PATHS
        for chunk in (None, 1000, 128, 50, 254)
    ]
    after = engines.logits_after
    results, *others = (after(one, ids, prompt, steps) for one in compared)
    assert calls
    for other in others:
        assert_equal(other, results)
    exact = model().logits(ids)[:, prompt - 1 : prompt + steps]
    if kind is None:
        assert_equal(results, exact)
    else:
        noise = (results - exact).square().mean() / exact.square().mean()
        # A cache that were not quantized would be at 1e-13.
        assert 1e-8 < noise < (1e-3 if kind == "int8" else 1e-2)


@pytest.mark.parametrize("path", PATHS[1:], ids=["kept", "computed"])
def test_a_mask_shows_a_position_itself_and_what_came_before(
    path: dict[str, Any],
) -> None:
    mask, linear = engine(cache_size=6, **path)._masks[0], "linear_causal_mask" in path
    assert mask is not None
    rows = mask(torch.tensor([0, 3, 5]))
    assert rows.dtype == torch.bool
    assert torch.equal(rows, torch.ones(6, 6).tril().bool()[[0, 3, 5]])
    nbytes = sum(buffer.nbytes for buffer in mask.buffers())
    assert nbytes == 6 * 8 + (0 if linear else 6 * 6)


@each_cache
@pytest.mark.parametrize("path", PATHS[:2], ids=["decode", "sdpa"])
def test_a_filled_cache_is_a_long_prompt(
    kind: str | None, path: dict[str, Any]
) -> None:
    ids = tokens(batch=2)
    one, unfilled = (engine(batch_size=2, kv_cache=kind, **path) for _ in range(2))
    one.fill(ids[:, :200])
    assert one.filled == 200
    prompt = ids[:, 200:220]
    expected = greedy(unfilled, ids[:, :220], 20)[:, 220:]
    for _ in range(2):
        # The second sample finds the filling as the first one found it.
        assert torch.equal(greedy(one, prompt, 20)[:, 20:], expected)
    one.check_prompt(prompt, max_new_tokens=SIZE - 220)
    message = rf"200 filled positions \+ 20 tokens \+ {SIZE - 219} new ones do not fit"
    with pytest.raises(UserError, match=message):
        one.check_prompt(prompt, max_new_tokens=SIZE - 219)


@each_cache
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("filled", [0, 7])
def test_a_ragged_batch_is_its_sequences_one_by_one(
    kind: str | None, chunk: int | None, filled: int
) -> None:
    prompts, lengths = tokens(batch=4, length=11), torch.tensor([1, 11, 4, 8])

    def new(prompt: Tensor, **options: Any) -> Tensor:
        batch = len(prompt)
        one = engine(batch_size=batch, kv_cache=kind, prefill_chunk=chunk)
        if filled:
            one.fill(tokens(length=filled, seed=5).repeat(batch, 1))
        return greedy(one, prompt, 16, **options)

    together = new(prompts, lengths=lengths)
    assert torch.equal(together[:, :11], prompts)
    for row, length in enumerate(lengths.tolist()):
        alone = new(prompts[row : row + 1, :length])
        assert torch.equal(together[row, 11:], alone[0, length:])


def test_greedy_generation_is_the_argmax_of_full_passes() -> None:
    one, prompt = engine(cache_size=32), tokens(length=12)
    out = greedy(one, prompt, 10)
    assert out.shape == (1, 22)
    assert torch.equal(model().logits(out)[:, 11:-1].argmax(-1), out[:, 12:])
    # What an earlier generation left in the cache is not seen.
    greedy(one, tokens(length=20, seed=9), 12)
    assert torch.equal(greedy(one, prompt, 10), out)


def new(
    prompt: Tensor,
    count: int = 4,
    *,
    lengths: Tensor | None = None,
    sampling: Sampling = Sampling(),
    **options: Any,
) -> Tensor:
    arguments: Any = {"lengths": lengths, "options": EngineOptions(**options)}
    return generate(
        model(), prompt, max_new_tokens=count, sampling=sampling, **arguments
    )


def test_generate_takes_a_seed_a_kind_of_cache_and_a_path() -> None:
    def draw(seed: int, **options: Any) -> list[int]:
        return new(ONE, 12, sampling=Sampling(seed=seed), **options)[0].tolist()

    assert draw(1) == draw(1) == draw(1, **SDPA)
    assert draw(1) != draw(2)
    for kind in ("int8", "fp8"):
        assert len(draw(1, kv_cache=kind)) == 24
    # All tokens are generated, whatever they are.
    prompt = tokens(batch=3, length=12)
    for count in (1, 2, 20):
        out = new(prompt, count)
        assert out.shape == (3, 12 + count)
        assert torch.equal(out[:, :12], prompt)


ONE = tokens(length=12)


def ragged(*lengths: float, **options: Any) -> Tensor:
    return new(tokens(batch=2, length=4), lengths=torch.tensor(lengths), **options)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: new(torch.zeros((1, 4))), "tokens: torch.float32"),
        (lambda: new(ONE[0]), r"tokens: torch.int64 \(12,\) is not allowed"),
        (lambda: new(ONE[:, :0]), "tokens: torch.int64"),
        (lambda: new(torch.tensor([[48]])), "tokens: id 48 is not allowed"),
        (lambda: model().logits(torch.zeros((1, 3))), "tokens: torch.float32"),
        (lambda: model().logits(ONE[0]), r"tokens: torch.int64 \(12,\) is not allowed"),
        (lambda: model().logits(torch.tensor([[-1, 5]])), "id -1 is not .* 0 to 47"),
        (lambda: new(ONE, 0), "max_new_tokens: 0 is not allowed"),
        (lambda: new(ONE, -3), "max_new_tokens: -3 is not allowed"),
        (lambda: new(ONE, cache_size=0), "cache_size: 0 is not allowed"),
        (lambda: new(ONE, cache_size=-1), "cache_size: -1 is not allowed"),
        (lambda: new(ONE, cache_size=10), "12 .* 4 new .* not fit the cache of 10"),
        (lambda: engine(cache_size=12).fill(ONE), "fill: 12 leaves no room"),
        (lambda: engine().fill(ONE.expand(2, -1)), "batch of 2 .* the caches hold 1"),
        (lambda: new(ONE, kv_cache="int4"), "kv_cache: 'int4' is not allowed"),
        (lambda: new(ONE, attention="flash"), "attention: 'flash' is not allowed"),
        (lambda: Sampling(temperature=-0.5), "temperature: -0.5 is not allowed"),
        (lambda: Sampling(temperature=float("nan")), "temperature: nan is not allowed"),
        (lambda: Sampling(top_k=0), "top_k: 0 is not allowed"),
        (lambda: Sampling(seed=3, generator=torch.Generator()), "seed: 3 is not"),
        (lambda: ragged(1, 5), "lengths: 5 is not allowed; allowed: 1 to 4"),
        (lambda: ragged(0, 4), "lengths: 0 is not allowed; allowed: 1 to 4"),
        (lambda: ragged(1), r"lengths: torch.int64 \(1,\) .* allowed: int64 \(2,\)"),
        (lambda: ragged(1.0, 2.0), r"lengths: torch.float32 \(2,\) is not allowed"),
        (lambda: ragged(1, 4, attention="sdpa"), "lengths: not .* attention 'sdpa'"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    refused: Callable[[], object], message: str
) -> None:
    assert re.search(message, refusal(refused, error=UserError))


def test_a_prompt_takes_no_square_of_its_length() -> None:
    taken = []
    for length in (2 * PREFILL_CHUNK, 4 * PREFILL_CHUNK):
        one = engine(cache_size=length + 1)
        with LiveBytes("cpu") as live, torch.no_grad():
            one.prefill(tokens(length=length))
        taken.append(live.peak - sum(tensor.nbytes for tensor in one.tensors()))
    # Twice the prompt: the mask of a few queries doubles, all else is a chunk's.
    assert taken[1] < 2 * taken[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("behind", [0, 30])
def test_a_card_is_asked_for_groups_in_16_bits(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, dtype: torch.dtype, behind: int
) -> None:
    monkeypatch.setattr(bias, "causal_lower_right", lambda *_size: LOWER_RIGHT)
    with FakeTensorMode():
        q = torch.empty(2, 4, 20, 64, device="cuda", dtype=dtype)
        cached = torch.empty(2, 20 + behind, 64, device="cuda", dtype=dtype)
        cached_attention._causal(q, cached, cached)
    assert [heads for heads, *_ in calls] == [(4, 1)]


def test_an_update_writes_its_positions_in_place_and_no_other() -> None:
    options: Any = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
    cache, shape = KVCache(TINY, batch_size=2, cache_size=10, **options), (2, 2, 10, 8)
    # It is no part of a model's weights.
    assert not list(cache.parameters())
    assert not cache.state_dict()
    before = cache.k_cache.data_ptr(), cache.v_cache.data_ptr()
    early, one, again = (torch.randn(2, 2, 2, n, 8).bfloat16() for n in (4, 1, 2))
    cache.update(torch.arange(4), *early)
    cache.update(torch.tensor([6]), *one)
    cache.update(torch.tensor([2, 7]), *again)
    for index, tensor in enumerate((cache.k_cache, cache.v_cache)):
        # The cache has only the heads of keys, not those of queries.
        assert (tensor.shape, tensor.dtype) == (shape, torch.bfloat16)
        assert torch.equal(tensor[:, :, [0, 1, 3]], early[index][:, :, [0, 1, 3]])
        assert torch.equal(tensor[:, :, 6:7], one[index])
        assert torch.equal(tensor[:, :, [2, 7]], again[index])
        assert not tensor[:, :, [4, 5, 8, 9]].any()
    # A compiled step or a captured graph has the address in it.
    assert (cache.k_cache.data_ptr(), cache.v_cache.data_ptr()) == before
