"""An engine reads a given text one token at a time, whatever it would choose itself."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf.llama.engine import Engine
from llama_perf.llama.options import GREEDY
from tests.correctness.support.engines import (
    CPU,
    engine,
    greedy,
    logits_after,
    small_model,
    tokens,
)

PATHS: tuple[dict[str, Any], ...] = (
    {},
    {"attention": "sdpa"},
    {"kv_cache": "int8"},
    {"prefill_chunk": 3},
    {"fused": True},
    {"slowdown": 0.5},
)


def read(one: Engine, text: Tensor, prompt: int, **options: Any) -> Tensor:
    """All logits, (B, T - prompt, V)."""
    seen = [logits.clone() for logits in one.read(text, prompt, **options)]
    return torch.stack(seen, dim=1)


def new_engine(options: dict[str, Any]) -> Engine:
    # The fused kernels take no narrower one.
    of = small_model(CPU) if options.get("fused") else None
    return engine(of, batch_size=2, **options)


@pytest.mark.parametrize("options", PATHS, ids=str)
def test_each_step_reads_the_given_token(options: dict[str, Any]) -> None:
    text = tokens(batch=2, length=20)
    logits = read(new_engine(options), text, 5)
    # None of these is what the engine would choose itself.
    assert not torch.equal(logits.argmax(-1), text[:, 5:])
    assert torch.equal(logits, logits_after(new_engine(options), text, 5, 14))


@pytest.mark.usefixtures("graphs")
def test_a_captured_step_reads_them_in_place(device: torch.device) -> None:
    of = small_model(device)
    captured, other = engine(of, capture=True), engine(of)
    for seed in (0, 1):
        text = tokens(length=20, seed=seed).to(device)
        logits = read(captured, text, 5)
        expected = logits_after(other, text, 5, 14)
        # Where no graph is real, its replays write the caches and not these logits.
        if device.type == "cuda":
            torch.testing.assert_close(logits, expected)
        for ours, theirs in zip(captured.caches, other.caches, strict=True):
            torch.testing.assert_close(ours.k_cache, theirs.k_cache)
    # One graph serves both texts.
    assert len(captured.captured) == 1


@pytest.mark.parametrize("options", PATHS, ids=str)
def test_of_its_own_greedy_tokens_it_has_the_logits_that_chose_them(
    options: dict[str, Any],
) -> None:
    prompt = tokens(batch=2, length=5)
    own = greedy(new_engine(options), prompt, 12)
    logits = read(new_engine(options), own, 5)
    assert torch.equal(logits.argmax(-1), own[:, 5:])
    free = new_engine(options).observe(
        prompt, max_new_tokens=12, observed=12, sampling=GREEDY
    )[1]
    assert torch.equal(logits, free)


def test_each_sequence_of_a_ragged_batch_goes_on_behind_its_own_prompt() -> None:
    text, lengths = tokens(batch=3, length=20), torch.tensor([1, 4, 6])
    logits = read(engine(batch_size=3), text, 6, lengths=lengths)
    assert logits.shape[1] == 14
    for number, length in enumerate(lengths.tolist()):
        own = text[number : number + 1, : length + 14]
        alone = read(engine(), own, length)
        torch.testing.assert_close(logits[number : number + 1], alone)


def test_it_reads_behind_positions_that_were_filled() -> None:
    text = tokens(length=30)
    filled = engine()
    filled.fill(text[:, :10])
    logits = read(filled, text[:, 10:], 5)
    torch.testing.assert_close(logits, read(engine(), text, 15))


def test_a_longer_engine_shares_the_weights_and_gives_the_same() -> None:
    short = engine(cache_size=20, kv_cache="int8")
    longer = short.longer(40)
    assert longer.model is short.model
    text = tokens(length=20)
    assert torch.equal(read(longer, text, 5), read(short, text, 5))
    assert read(longer, tokens(length=40), 5).shape[1] == 35
