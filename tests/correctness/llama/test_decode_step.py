"""The step that feeds itself, and the same step captured.

A CPU has no graphs: there what would be captured is kept and run at each replay, so
that all but CUDA's own part is the same code. On a card it is captured for real.
"""

import gc
import weakref
from functools import partial
from typing import Any
from unittest.mock import MagicMock, call

import pytest
import torch
from torch import Tensor

from llama_perf import quantize_model
from llama_perf.llama import decode_step
from llama_perf.llama.decode_step import sample
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import GREEDY, EngineOptions, Sampling
from llama_perf.llama.transformer import Transformer
from tests.correctness.support.device_samples import PROMPT, TIE, device, small_model
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


@pytest.fixture
def model(device: torch.device, graphs: list[object]) -> Transformer:
    del graphs  # Captures work from here on.
    return small_model(device)


def engine(model: Transformer, **options: Any) -> Engine:
    return Engine(model, EngineOptions(**{"cache_size": 256, **options}))


def generated(
    one: Engine,
    *,
    count: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    prompt = PROMPT.to(one.model.device)
    generator = generator or torch.Generator(device=one.model.device)
    generator.manual_seed(seed)
    sampling = Sampling(temperature=temperature, top_k=20, generator=generator)
    return one.generate(prompt, max_new_tokens=count, sampling=sampling).cpu()


def test_the_step_is_decoding_and_sampling_by_hand(
    model: Transformer, device: torch.device
) -> None:
    by_hand = engine(model)
    generator = torch.Generator(device=device).manual_seed(3)

    def choose(logits: Tensor) -> Tensor:
        return sample(logits, Sampling(temperature=0.8, top_k=20, generator=generator))

    tokens = [choose(by_hand.prefill(PROMPT.to(device)))]
    for index in range(30):
        position = torch.tensor([PROMPT.shape[1] + index], device=device)
        tokens.append(choose(by_hand.decode(tokens[-1], position)))
    for capture in (False, True):
        one = engine(model, capture=capture)
        actual = generated(one, count=31, temperature=0.8, seed=3)
        assert torch.equal(actual[:, PROMPT.shape[1] :], torch.cat(tokens, 1).cpu())


@pytest.mark.parametrize("fused", [False, True], ids=["modules", "fused"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_captured_tokens_are_those_of_an_eager_step(
    model: Transformer, scheme: str | None, fused: bool
) -> None:
    on_card = model.device.type == "cuda"
    if fused and not on_card:
        pytest.skip("test_fused.py has them in the interpreter")
    if scheme is not None:
        model = quantize_model(model, scheme, kernels="native")
    count = 200 if on_card else 20
    eager = generated(engine(model), count=count)
    actual = generated(engine(model, capture=True, fused=fused), count=count)
    differs = (eager != actual).nonzero()
    if len(differs):
        place = int(differs[0, 1])
        logits = model.logits(eager[:, :place])[0, -1]
        chosen = logits[torch.stack((eager[0, place], actual[0, place]))]
        gap = (chosen[0] - chosen[1]).abs().item()
        assert gap < TIE[model.dtype], f"token {place} differs, {gap} apart"


def test_one_capture_serves_other_seeds_and_lengths(
    model: Transformer, graphs: list[object]
) -> None:
    one, eager = engine(model, capture=True), engine(model)
    generators = {which: torch.Generator(device=model.device) for which in (0.8, 0)}
    alike = ((12, 0.8, 0), (60, 0.8, 1), (9, 0.8, 2), (4, 0, 0), (60, 0, 0), (5, 0, 0))
    for count, temperature, seed in alike:
        draw = partial(generated, count=count, temperature=temperature, seed=seed)
        actual = draw(one, generator=generators[temperature])
        assert torch.equal(actual, draw(eager)), (count, temperature, seed)
    # One draws, one is greedy.
    assert len(one.captured) == 2
    assert model.device.type == "cuda" or len(graphs) == 2


def test_a_ragged_batch_keeps_its_own_positions(model: Transformer) -> None:
    prompt = PROMPT.repeat(3, 1).to(model.device)
    lengths = torch.tensor([1, 3, 5], device=model.device)
    actual = [
        engine(model, batch_size=3, cache_size=64, capture=capture).generate(
            prompt, max_new_tokens=10, lengths=lengths, sampling=GREEDY
        )
        for capture in (False, True)
    ]
    assert torch.equal(*actual)


@pytest.mark.parametrize(
    ("share", "extra"), [(0.0, 0), (0.25, 5), (0.5, 10), (1.0, 20), (2, 40)]
)
@pytest.mark.parametrize("capture", [False, True])
def test_a_slowdown_repeats_steps_and_changes_no_token(
    model: Transformer,
    capture: bool,
    share: float,
    extra: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def count(owner: Any, name: str) -> list[None]:
        calls: list[None] = []
        function = getattr(owner, name)

        def counted(*arguments: Any) -> Any:
            calls.append(None)
            return function(*arguments)

        monkeypatch.setattr(owner, name, counted)
        return calls

    slowed = engine(model, capture=capture, slowdown=share)
    kind = decode_step.CapturedDecodeStep if capture else decode_step.DecodeStep
    repeated, decoded = count(kind, "repeat"), count(slowed, "decode")
    actual = generated(slowed, count=21, temperature=0.8)
    assert torch.equal(actual, generated(engine(model), count=21, temperature=0.8))
    assert len(repeated) == extra
    if model.device.type == "cpu":
        # A step is run once more before it is captured.
        assert len(decoded) == 20 + extra + capture


def test_a_stream_gives_each_token_to_keep(model: Transformer) -> None:
    one = engine(model, capture=True)
    prompt = PROMPT.to(model.device)
    tokens = list(one.stream(prompt, max_new_tokens=15, sampling=GREEDY))
    generation = generated(one, count=15)
    assert torch.equal(torch.cat(tokens, 1).cpu(), generation[:, PROMPT.shape[1] :])


def test_replays_neither_wait_nor_allocate(model: Transformer) -> None:
    device, one = model.device, engine(model, capture=True)
    generated(one, count=8)
    (captured,) = one.captured.values()
    with refusing_to_wait(device):
        for _ in range(4):
            captured.run()
    if device.type == "cuda":
        before = torch.cuda.memory_stats(device)["allocation.all.allocated"]
        for _ in range(4):
            captured.run()
        after = torch.cuda.memory_stats(device)["allocation.all.allocated"]
        assert before == after


# A CPU keeps no graphs: nothing is held beside the engine's tensors.
on_card = pytest.param("cuda", marks=pytest.mark.cuda)


@pytest.mark.parametrize("device", [on_card], indirect=True)
def test_memory_is_given_back_with_the_engine(model: Transformer) -> None:
    allocated = []
    for _ in range(2):
        generated(engine(model, capture=True))
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated(model.device))
    assert allocated[0] == allocated[1]


@pytest.mark.parametrize("capture", [False, True])
def test_an_engine_that_is_dropped_gives_its_caches_back_at_once(
    model: Transformer, capture: bool
) -> None:
    """By counting references: no row waits for a collection of garbage."""
    one = engine(model, capture=capture)
    generated(one, count=4)
    cache = weakref.ref(one.caches[0].k_cache)
    gc.disable()
    try:
        del one
        assert cache() is None
    finally:
        gc.enable()


def test_everything_runs_and_is_captured_on_one_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cuBLAS keeps 32 MB for each stream that it has seen, and none is given back."""
    names = ("Stream", "CUDAGraph", "current_device", "current_stream", "stream")
    cuda = {name: MagicMock() for name in (*names, "graph")}
    for name, fake in cuda.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    decode_step._capture_stream.cache_clear()
    ran: list[int] = []
    for number in range(3):
        decode_step.warm_up(partial(ran.append, number))
        decode_step.capture_graph(partial(ran.append, number))
    decode_step._capture_stream.cache_clear()
    assert ran == [0, 0, 1, 1, 2, 2]
    cuda["Stream"].assert_called_once_with()
    made, graph = cuda["Stream"].return_value, cuda["CUDAGraph"].return_value
    assert cuda["stream"].call_args_list == [call(made)] * 3
    assert cuda["graph"].call_args_list == [call(graph, stream=made)] * 3
