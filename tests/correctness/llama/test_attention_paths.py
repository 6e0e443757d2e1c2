"""The engine on both attention paths: every cache, chunks, filling, ragged batches.

Compared with one another, with a pass without a cache, and one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf import generate
from llama_perf.checkpoints.load import build_model
from llama_perf.errors import PromptError, SpecError
from llama_perf.llama.compiler import compiler_settings
from llama_perf.llama.engine import PREFILL_CHUNK, Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.sampling import GREEDY, Sampling
from llama_perf.llama.transformer import Transformer
from scripts.doc_tables.figures import equal_up_to_turned_codes
from tests.correctness.support.live_bytes import LiveBytes
from tests.correctness.support.weights_samples import TINY, tiny_weights

CPU = torch.device("cpu")
CACHES = (None, "int8", "fp8")
SIZE = 258
"""Positions up to the cache's last one: lengths 1, 2, 255, 256, 257 and 258."""


@pytest.fixture(scope="module")
def model() -> Transformer:
    return build_model(tiny_weights(), dtype=torch.float32, device=CPU)


@pytest.fixture
def compiler() -> Iterator[None]:
    with compiler_settings():
        yield


def tokens(batch: int = 1, length: int = SIZE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TINY.vocab_size, (batch, length), generator=generator)


def after(engine: Engine, ids: Tensor, prompt: int, steps: int) -> Tensor:
    """Logits after `prompt` tokens of `ids` and after each of `steps` more."""
    with torch.no_grad():
        logits = [engine.prefill(ids[:, :prompt])]
        for position in range(prompt, prompt + steps):
            token = ids[:, position : position + 1]
            logits.append(engine.decode(token, torch.tensor([position])))
    return torch.stack(logits, dim=1)


def assert_equal(results: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1, "logits near zero would prove nothing"
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


def test_the_model_groups_its_queries() -> None:
    assert TINY.n_heads > TINY.n_kv_heads


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("prompt", [1, 254, 256])
def test_both_paths_give_the_same_logits(
    model: Transformer, kind: str | None, prompt: int
) -> None:
    ids, steps = tokens(batch=2), min(SIZE - prompt, 3)
    results = [
        after(
            Engine(
                model,
                EngineOptions(
                    batch_size=2, cache_size=SIZE, kv_cache=kind, attention=path
                ),
            ),
            ids,
            prompt,
            steps,
        )
        for path in ("decode", "sdpa")
    ]
    assert_equal(*results)
    exact = model.logits(ids)[:, prompt - 1 : prompt + steps]
    if kind is None:
        assert_equal(results[0], exact)
    else:
        noise = (results[0] - exact).square().mean() / exact.square().mean()
        # A cache that were not quantized would be at 1e-13.
        assert 1e-8 < noise < (1e-3 if kind == "int8" else 1e-2)


@pytest.mark.parametrize("kind", CACHES)
def test_a_linear_mask_gives_the_tokens_of_the_whole_one(
    model: Transformer, kind: str | None
) -> None:
    prompt, engines = tokens(length=20), []
    for options in (
        {"attention": "sdpa"},
        {"attention": "sdpa", "linear_causal_mask": True},
        {"attention": "decode"},
    ):
        engines.append(
            Engine(model, EngineOptions(cache_size=60, kv_cache=kind, **options))
        )
    results = [
        engine.generate(prompt, max_new_tokens=40, sampling=GREEDY)
        for engine in engines
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    masks = [
        engine._mask.memory_bytes() for engine in engines if engine._mask is not None
    ]
    assert masks == [60 * 8 + 60 * 60, 60 * 8]


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("path", ["decode", "sdpa"])
def test_a_prompt_in_chunks_is_the_prompt_as_a_whole(
    model: Transformer, kind: str | None, path: str
) -> None:
    ids = tokens(batch=2)
    results = [
        after(
            Engine(
                model,
                EngineOptions(
                    batch_size=2,
                    cache_size=SIZE,
                    kv_cache=kind,
                    attention=path,
                    prefill_chunk=chunk,
                ),
            ),
            ids,
            255,
            2,
        )
        for chunk in (None, 1000, 128, 50, 254)
    ]
    for other in results[1:]:
        assert_equal(other, results[0])


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("path", ["decode", "sdpa"])
def test_a_filled_cache_is_a_long_prompt(
    model: Transformer, kind: str | None, path: str
) -> None:
    ids = tokens(batch=2)
    options = EngineOptions(
        batch_size=2, cache_size=SIZE, kv_cache=kind, attention=path
    )
    engine = Engine(model, options)
    engine.fill(ids[:, :200])
    assert engine.filled == 200
    unfilled = Engine(model, options).generate(
        ids[:, :220], max_new_tokens=20, sampling=GREEDY
    )
    for _ in range(2):
        # The second sample finds the filling as the first one found it.
        new = engine.generate(ids[:, 200:220], max_new_tokens=20, sampling=GREEDY)
        assert torch.equal(new[:, 20:], unfilled[:, 220:])


def test_a_filling_must_leave_room(model: Transformer) -> None:
    engine = Engine(model, EngineOptions(cache_size=20))
    with pytest.raises(PromptError, match="fill: 20 positions leave no room for a"):
        engine.fill(tokens(length=20))
    engine.fill(tokens(length=10))
    message = r"10 filled positions \+ 6 tokens \+ 5 new ones do not fit the cache"
    with pytest.raises(PromptError, match=message):
        engine.check_prompt(tokens(length=6), max_new_tokens=5)
    engine.check_prompt(tokens(length=6), max_new_tokens=4)


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("filled", [0, 7])
def test_a_ragged_batch_is_its_sequences_one_by_one(
    model: Transformer, kind: str | None, chunk: int | None, filled: int
) -> None:
    prompts, lengths = tokens(batch=4, length=11), torch.tensor([1, 11, 4, 8])
    options = EngineOptions(cache_size=40, kv_cache=kind, prefill_chunk=chunk)
    engine = Engine(model, replace(options, batch_size=4))
    if filled:
        engine.fill(tokens(length=filled, seed=5).repeat(4, 1))
    together = engine.generate(
        prompts, lengths=lengths, max_new_tokens=16, sampling=GREEDY
    )
    assert torch.equal(together[:, :11], prompts)
    for row, length in enumerate(lengths.tolist()):
        engine = Engine(model, options)
        if filled:
            engine.fill(tokens(length=filled, seed=5))
        alone = engine.generate(
            prompts[row : row + 1, :length], max_new_tokens=16, sampling=GREEDY
        )
        assert torch.equal(together[row, 11:], alone[0, length:])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([1, 5]), "lengths: 5 is not allowed; allowed: 1 to 4"),
        (torch.tensor([0, 4]), "lengths: 0 is not allowed; allowed: 1 to 4"),
        (torch.tensor([1]), r"lengths: torch.int64 \(1,\) is not allowed; allowed: in"),
        (torch.tensor([1.0, 2.0]), r"lengths: torch.float32 \(2,\) is not allowed"),
    ],
)
def test_wrong_lengths_are_named(
    model: Transformer, lengths: Tensor, message: str
) -> None:
    prompt = tokens(batch=2, length=4)
    with pytest.raises(PromptError, match=message):
        generate(model, prompt, lengths=lengths, max_new_tokens=2)
    with pytest.raises(PromptError, match="lengths: not allowed with attention 'sdpa'"):
        generate(
            model,
            prompt,
            lengths=lengths,
            max_new_tokens=2,
            options=EngineOptions(attention="sdpa"),
        )


def test_generate_takes_a_kind_of_cache_and_a_path(model: Transformer) -> None:
    def new(**options: Any) -> Tensor:
        return generate(
            model,
            tokens(length=9),
            max_new_tokens=9,
            sampling=Sampling(seed=1),
            options=EngineOptions(**options),
        )

    assert torch.equal(new(), new(attention="sdpa"))
    for kind in ("int8", "fp8"):
        assert new(kv_cache=kind).shape == (1, 18)
    with pytest.raises(SpecError, match="kv_cache: 'int4' is not allowed"):
        new(kv_cache="int4")
    with pytest.raises(SpecError, match="attention: 'flash' is not allowed"):
        new(attention="flash")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", CACHES)
def test_compiled_code_serves_every_position(
    model: Transformer, kind: str | None
) -> None:
    from torch._dynamo.utils import counters

    ids = tokens(batch=2, length=40)
    engine = Engine(
        model,
        EngineOptions(
            batch_size=2,
            cache_size=SIZE,
            kv_cache=kind,
            prefill_chunk=11,
            compile=True,
            compile_prefill=True,
        ),
    )
    eager = Engine(model, EngineOptions(batch_size=2, cache_size=SIZE, kv_cache=kind))
    unquantized = Engine(model, EngineOptions(batch_size=2, cache_size=SIZE))

    def check(prompt: int, steps: int) -> None:
        results, expected, exact = (
            after(one_engine, ids, prompt, steps)
            for one_engine in (engine, eager, unquantized)
        )
        if kind is None:
            torch.testing.assert_close(results, expected, rtol=1e-3, atol=1e-3)
        else:
            assert equal_up_to_turned_codes(results, expected, exact)

    check(10, 30)
    counters.clear()
    for prompt in (11, 25, 33):
        check(prompt, 5)
    assert not counters["stats"]["unique_graphs"], "compiled anew"
    assert not counters["graph_break"]


def standing(engine: Engine) -> int:
    """Bytes of the weights and caches, whose views count as well."""
    tensors: list[Tensor] = [*engine.model.parameters()]
    tensors += [buffer for cache in engine.caches for buffer in cache.buffers()]
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("kind", CACHES)
def test_a_step_takes_no_mask_and_no_copy_of_the_cache(
    model: Transformer, kind: str | None
) -> None:
    # The triangle would be 64 MB, a copy of a layer's keys 0.5 MB or more.
    size = 8192
    engine = Engine(model, EngineOptions(cache_size=size, kv_cache=kind))
    cache = engine._caches[0].k_cache
    with torch.no_grad():
        engine.prefill(tokens(length=20))
        with LiveBytes("cpu") as live:
            engine.decode(tokens(length=1), torch.tensor([20]))
    assert live.peak < standing(engine) + cache.numel() / 4


def test_a_prompt_takes_no_square_of_its_length(model: Transformer) -> None:
    taken = []
    for length in (2 * PREFILL_CHUNK, 4 * PREFILL_CHUNK):
        engine = Engine(model, EngineOptions(cache_size=length + 1))
        with LiveBytes("cpu") as live, torch.no_grad():
            engine.prefill(tokens(length=length))
        taken.append(live.peak - standing(engine))
    # Twice the prompt: the mask of a few queries doubles, all else is a chunk's.
    assert taken[1] < 2 * taken[0]
