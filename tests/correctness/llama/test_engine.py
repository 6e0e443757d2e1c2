"""The engine on both attention paths: every cache, chunks, filling, ragged batches.

Compared with one another, with a pass without a cache, and one by one.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf import generate
from llama_perf.errors import UserError
from llama_perf.llama.engine import PREFILL_CHUNK, Engine
from llama_perf.llama.options import EngineOptions, Sampling
from tests.correctness.support.live_bytes import LiveBytes
from tests.correctness.support.tiny_engine import (
    SIZE,
    engine,
    greedy,
    logits_after,
    model,
    tokens,
)
from tests.correctness.support.weights_samples import TINY

each_cache = pytest.mark.parametrize("kind", [None, "int8", "fp8"])
each_path = pytest.mark.parametrize("path", ["decode", "sdpa"])


def assert_equal(results: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1, "logits near zero would prove nothing"
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


@each_cache
@pytest.mark.parametrize("prompt", [1, 254, 256])
def test_both_paths_give_the_same_logits(kind: str | None, prompt: int) -> None:
    assert TINY.n_heads > TINY.n_kv_heads, "queries are grouped"
    ids, steps = tokens(batch=2), min(SIZE - prompt, 3)
    results, others = (
        logits_after(
            engine(batch_size=2, kv_cache=kind, attention=path), ids, prompt, steps
        )
        for path in ("decode", "sdpa")
    )
    assert_equal(results, others)
    exact = model().logits(ids)[:, prompt - 1 : prompt + steps]
    if kind is None:
        assert_equal(results, exact)
    else:
        noise = (results - exact).square().mean() / exact.square().mean()
        # A cache that were not quantized would be at 1e-13.
        assert 1e-8 < noise < (1e-3 if kind == "int8" else 1e-2)


@each_cache
def test_a_linear_mask_gives_the_tokens_of_the_whole_one(kind: str | None) -> None:
    sdpa: dict[str, Any] = {"attention": "sdpa"}
    engines = [
        engine(cache_size=60, kv_cache=kind, **options)
        for options in (sdpa, {**sdpa, "linear_causal_mask": True}, {})
    ]
    results = [greedy(one, tokens(length=20), 40) for one in engines]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    sizes = [sum(tensor.nbytes for tensor in one.tensors()) for one in engines]
    assert [size - sizes[2] for size in sizes[:2]] == [60 * 8 + 60 * 60, 60 * 8]


@each_cache
@each_path
def test_a_prompt_in_chunks_is_the_prompt_as_a_whole(
    kind: str | None, path: str
) -> None:
    options: Any = {"batch_size": 2, "kv_cache": kind, "attention": path}
    results = [
        logits_after(engine(**options, prefill_chunk=chunk), tokens(batch=2), 255, 2)
        for chunk in (None, 1000, 128, 50, 254)
    ]
    for other in results[1:]:
        assert_equal(other, results[0])


@each_cache
@each_path
def test_a_filled_cache_is_a_long_prompt(kind: str | None, path: str) -> None:
    ids = tokens(batch=2)
    one, unfilled = (
        engine(batch_size=2, kv_cache=kind, attention=path) for _ in range(2)
    )
    one.fill(ids[:, :200])
    assert one.filled == 200
    expected = greedy(unfilled, ids[:, :220], 20)[:, 220:]
    for _ in range(2):
        # The second sample finds the filling as the first one found it.
        assert torch.equal(greedy(one, ids[:, 200:220], 20)[:, 20:], expected)


def test_a_filling_must_leave_room() -> None:
    one = engine(cache_size=20)
    with pytest.raises(UserError, match="fill: 20 positions leave no room for a"):
        one.fill(tokens(length=20))
    one.fill(tokens(length=10))
    message = r"10 filled positions \+ 6 tokens \+ 5 new ones do not fit the cache"
    with pytest.raises(UserError, match=message):
        one.check_prompt(tokens(length=6), max_new_tokens=5)
    one.check_prompt(tokens(length=6), max_new_tokens=4)
    with pytest.raises(UserError, match=r"a batch of 2 .* the caches hold 1"):
        one.check_prompt(tokens(batch=2, length=6), max_new_tokens=1)


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
    for length in range(12, 22):
        following = model().logits(out[:, :length])[:, -1].argmax(-1)
        assert following.item() == out[0, length].item()
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
        sampling = Sampling(seed=seed)
        return new(tokens(length=12), 12, sampling=sampling, **options)[0].tolist()

    assert draw(1) == draw(1) == draw(1, attention="sdpa")
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
    with pytest.raises(UserError, match=message) as caught:
        refused()
    assert "\n" not in str(caught.value)


def standing(one: Engine) -> int:
    """Bytes of the weights and caches, whose views count as well."""
    return sum(tensor.nbytes for tensor in one.tensors())


@each_cache
def test_a_step_takes_no_mask_and_no_copy_of_the_cache(kind: str | None) -> None:
    # The triangle would be 64 MB, a copy of a layer's keys 0.5 MB or more.
    one = engine(cache_size=8192, kv_cache=kind)
    with torch.no_grad():
        one.prefill(tokens(length=20))
        with LiveBytes("cpu") as live:
            one.decode(tokens(length=1), torch.tensor([20]))
    assert live.peak < standing(one) + one.caches[0].k_cache.numel() / 4


def test_a_prompt_takes_no_square_of_its_length() -> None:
    taken = []
    for length in (2 * PREFILL_CHUNK, 4 * PREFILL_CHUNK):
        one = engine(cache_size=length + 1)
        with LiveBytes("cpu") as live, torch.no_grad():
            one.prefill(tokens(length=length))
        taken.append(live.peak - standing(one))
    # Twice the prompt: the mask of a few queries doubles, all else is a chunk's.
    assert taken[1] < 2 * taken[0]
