"""The step that feeds itself, and the same step captured.

A CPU has no graphs: there what would be captured is kept and run at each replay, so
that all but CUDA's own part is the same code. On a card it is captured for real.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llama_perf import quantize_model
from llama_perf.llama import decode_step
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.sampling import GREEDY, Sampling, sample
from llama_perf.llama.transformer import Transformer
from llama_perf.rows.schemes import Scheme
from tests.correctness.support.device_samples import (
    PROMPT,
    SMALL,
    TIE,
    device,
    small_model,
)
from tests.correctness.support.waiting import refusing_to_wait

__all__ = ["device"]  # A fixture.
SCHEMES = (
    None,
    "int8wo",
    "int8dq",
    "int4wo-64",
    "uintx-4-64",
    "uintx-2-8",
    "fp6",
    "sparse-marlin",
)


class FakeGraph:
    """What stands for a graph on a CPU: its work, run at each replay."""

    count = 0

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work
        FakeGraph.count += 1


@pytest.fixture(autouse=True)
def capturing(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGraph.count = 0
    if device.type == "cpu":
        monkeypatch.setattr(decode_step, "warm_up", lambda work: work())
        monkeypatch.setattr(
            decode_step, "capture_graph", lambda work, *_generator: FakeGraph(work)
        )


def engine(model: Transformer, **options: bool | float) -> Engine:
    return Engine(model, EngineOptions(cache_size=256, **options))  # type: ignore[arg-type]


def generated(
    one: Engine, *, count: int = 40, temperature: float = 0.0, seed: int = 0
) -> Tensor:
    prompt = PROMPT.to(one.model.device)
    generator = torch.Generator(device=one.model.device).manual_seed(seed)
    return one.generate(
        prompt,
        max_new_tokens=count,
        sampling=Sampling(temperature=temperature, generator=generator),
    ).cpu()


def test_the_step_is_decoding_and_sampling_by_hand(device: torch.device) -> None:
    model = small_model(device)
    by_hand = engine(model)
    generator = torch.Generator(device=device).manual_seed(3)

    def choose(logits: Tensor) -> Tensor:
        return sample(logits, Sampling(temperature=0.8, top_k=20, generator=generator))

    tokens = [choose(by_hand.prefill(PROMPT.to(device)))]
    for index in range(30):
        position = torch.tensor([PROMPT.shape[1] + index], device=device)
        tokens.append(choose(by_hand.decode(tokens[-1], position)))
    for capture in (False, True):
        again = torch.Generator(device=device).manual_seed(3)
        actual = engine(model, capture=capture).generate(
            PROMPT.to(device),
            max_new_tokens=31,
            sampling=Sampling(temperature=0.8, top_k=20, generator=again),
        )
        assert torch.equal(actual[:, PROMPT.shape[1] :], torch.cat(tokens, 1))


@pytest.mark.parametrize("fused", [False, True], ids=["modules", "fused"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_captured_tokens_are_those_of_an_eager_step(
    device: torch.device, scheme: str | None, fused: bool
) -> None:
    if fused and device.type == "cpu":
        pytest.skip("test_fused.py has them in the interpreter")
    model = small_model(device)
    if scheme is not None:
        assert "native" in Scheme.parse(scheme).kernels
        model = quantize_model(model, scheme, kernels="native")
    count = 200 if device.type == "cuda" else 20
    eager = generated(engine(model), count=count)
    actual = generated(engine(model, capture=True, fused=fused), count=count)
    differs = (eager != actual).nonzero()
    if len(differs):
        place = int(differs[0, 1])
        logits = model.logits(eager[:, :place])[0, -1]
        chosen = logits[torch.stack((eager[0, place], actual[0, place]))]
        gap = (chosen[0] - chosen[1]).abs().item()
        assert gap < TIE[model.dtype], f"token {place} differs, {gap} apart"


def test_it_is_captured_once_for_all_generations(device: torch.device) -> None:
    model = small_model(device)
    one, eager = engine(model, capture=True), engine(model)
    generator = torch.Generator(device=device)
    for seed in (0, 1, 2):
        generator.manual_seed(seed)
        actual = one.generate(
            PROMPT.to(device),
            max_new_tokens=12,
            sampling=Sampling(temperature=0.8, generator=generator),
        )
        assert torch.equal(
            actual.cpu(), generated(eager, count=12, temperature=0.8, seed=seed)
        )
    assert len(one._steps.captured) == 1
    if device.type == "cpu":
        assert FakeGraph.count == 1


def test_a_longer_generation_and_another_sampling_are_served(
    device: torch.device,
) -> None:
    model = small_model(device)
    one, eager = engine(model, capture=True), engine(model)
    for count, temperature in ((4, 0.0), (60, 0.0), (9, 0.8), (5, 0.0)):
        actual = generated(one, count=count, temperature=temperature)
        expected = generated(eager, count=count, temperature=temperature)
        assert torch.equal(actual, expected), (count, temperature)


def test_a_ragged_batch_keeps_its_own_positions(device: torch.device) -> None:
    model = small_model(device)
    prompt = PROMPT.repeat(3, 1).to(device)
    lengths = torch.tensor([1, 3, 5], device=device)
    actual = [
        Engine(
            model, EngineOptions(batch_size=3, cache_size=64, capture=capture)
        ).generate(prompt, max_new_tokens=10, lengths=lengths, sampling=GREEDY)
        for capture in (False, True)
    ]
    assert torch.equal(*actual)


@pytest.mark.parametrize("capture", [False, True])
def test_a_slowdown_repeats_steps_and_changes_no_token(
    device: torch.device, capture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(device)
    repeated = []
    kind = decode_step.CapturedDecodeStep if capture else decode_step.DecodeStep
    once = kind.repeat

    def counted(step: decode_step.DecodeStep) -> None:
        repeated.append(1)
        once(step)  # type: ignore[arg-type] # of either class

    monkeypatch.setattr(kind, "repeat", counted)
    slowed = engine(model, capture=capture, slowdown=0.5)
    actual = generated(slowed, count=21, temperature=0.8)
    assert torch.equal(actual, generated(engine(model), count=21, temperature=0.8))
    assert len(repeated) == 10


def test_a_stream_gives_each_token_to_keep(device: torch.device) -> None:
    model = small_model(device)
    one = engine(model, capture=True)
    tokens = list(one.stream(PROMPT.to(device), max_new_tokens=15, sampling=GREEDY))
    generation = generated(one, count=15)
    assert torch.equal(torch.cat(tokens, 1).cpu(), generation[:, PROMPT.shape[1] :])


def test_replays_neither_wait_nor_allocate(device: torch.device) -> None:
    one = engine(small_model(device), capture=True)
    prompt = PROMPT.to(device)
    one.generate(prompt, max_new_tokens=8, sampling=GREEDY)
    (captured,) = one._steps.captured.values()
    with refusing_to_wait(device):
        for _ in range(4):
            captured.run()
    if device.type == "cuda":
        before = torch.cuda.memory_stats(device)["allocation.all.allocated"]
        for _ in range(4):
            captured.run()
        after = torch.cuda.memory_stats(device)["allocation.all.allocated"]
        assert before == after


def test_memory_is_given_back_with_the_engine(device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip(
            "a CPU keeps no graphs: nothing is held beside the engine's tensors"
        )
    model = small_model(device)
    generated(engine(model, capture=True))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    generated(engine(model, capture=True))
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated(device) == before


def test_the_vocabulary_is_that_of_the_other_tests() -> None:
    assert PROMPT.max() < SMALL.vocab_size


@pytest.mark.parametrize("capture", [False, True])
def test_an_engine_that_is_dropped_gives_its_caches_back_at_once(
    device: torch.device, capture: bool
) -> None:
    """By counting references: no row waits for a collection of garbage."""
    one = engine(small_model(device), capture=capture)
    generated(one, count=4)
    cache = weakref.ref(one.caches[0].k_cache)
    gc.disable()
    try:
        del one
        assert cache() is None
    finally:
        gc.enable()
