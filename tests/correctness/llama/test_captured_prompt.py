"""A short prompt of a fused engine as one graph, and what its steps draw.

Interpreted on a CPU, which has no graphs: what would be captured is kept and run at
each replay, as in `test_decode_step.py`. On a card it is captured for real.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llama_perf.llama import decode_step
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.sampling import GREEDY, Sampling
from llama_perf.llama.transformer import Transformer
from tests.correctness.llama.test_fused import small_model
from tests.correctness.support.interpreter import device, test_in_the_interpreter

__all__ = ["device", "test_in_the_interpreter"]


class FakeGraph:
    """What stands for a graph on a CPU: its work, run at each replay."""

    count = 0

    def __init__(self, work: Callable[[], None], *_generator: object) -> None:
        self.replay = work
        FakeGraph.count += 1


@pytest.fixture(autouse=True)
def capturing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "device" not in request.fixturenames:
        return
    FakeGraph.count = 0
    if request.getfixturevalue("device").type == "cpu":
        monkeypatch.setattr(decode_step, "warm_up", lambda work: work())
        monkeypatch.setattr(decode_step, "capture_graph", FakeGraph)


@pytest.fixture
def model(device: torch.device) -> Transformer:
    return small_model(None, torch.float32, device)


def engine(model: Transformer, *, capture: bool, batch: int = 1) -> Engine:
    return Engine(
        model,
        EngineOptions(batch_size=batch, cache_size=24, fused=True, capture=capture),
    )


def generated(
    one: Engine,
    prompt: list[list[int]],
    *,
    lengths: list[int] | None = None,
    temperature: float = 0.8,
    seed: int = 0,
    count: int = 2,
) -> Tensor:
    device = one.model.device
    return one.generate(
        torch.tensor(prompt, device=device),
        max_new_tokens=count,
        lengths=None if lengths is None else torch.tensor(lengths, device=device),
        sampling=Sampling(
            temperature=temperature,
            top_k=7,
            generator=torch.Generator(device=device).manual_seed(seed),
        ),
    )


def graphs(one: Engine) -> int:
    return sum(len(step.prompts) for step in one._steps.captured.values())


def test_one_graph_for_a_length_serves_every_prompt_and_seed(
    model: Transformer, device: torch.device
) -> None:
    one, eager = engine(model, capture=True), engine(model, capture=False)
    drawn = []
    for prompt, seed in (([1, 2, 3], 0), ([7, 8, 9], 1), ([1, 2, 3], 0), ([5, 6], 0)):
        drawn.append(generated(one, [prompt], seed=seed))
        assert torch.equal(drawn[-1], generated(eager, [prompt], seed=seed))
    assert torch.equal(drawn[0], drawn[2])
    # Lengths of 3 and 2, and the step's own.
    assert graphs(one) == 2
    assert device.type == "cuda" or FakeGraph.count == 3


def test_a_generation_draws_other_numbers_than_the_one_before(
    model: Transformer, device: torch.device
) -> None:
    one = engine(model, capture=True)
    generator = torch.Generator(device=device).manual_seed(0)
    prompt = torch.tensor([[1, 2, 3]], device=device)
    actual = {
        tuple(
            one.generate(
                prompt,
                max_new_tokens=2,
                sampling=Sampling(temperature=2.0, generator=generator),
            )[0].tolist()
        )
        for _ in range(3)
    }
    assert len(actual) == 3


def test_what_is_filled_stands_before_the_prompt(model: Transformer) -> None:
    one, eager = engine(model, capture=True), engine(model, capture=False)
    before = torch.tensor([[4, 4, 9, 11, 2]], device=model.device)
    for length in (2, 5):
        for filled in (one, eager):
            filled.fill(before[:, :length])
        actual = generated(one, [[1, 2, 3]], temperature=0)
        assert torch.equal(actual, generated(eager, [[1, 2, 3]], temperature=0))
    # Of what is filled differently the graph is of no use any more.
    assert graphs(one) == 1


def test_sequences_keep_lengths_of_their_own(model: Transformer) -> None:
    one = engine(model, capture=True, batch=2)
    eager = engine(model, capture=False, batch=2)
    prompt = [[1, 2, 3], [7, 8, 9]]
    for lengths in ([2, 3], [3, 1]):
        actual, wanted = (
            generated(ragged, prompt, lengths=lengths) for ragged in (one, eager)
        )
        assert torch.equal(actual, wanted)
    # A sequence is as it would be alone.
    alone = generated(engine(model, capture=False), [[7]], temperature=0)
    both = generated(one, prompt, lengths=[3, 1], temperature=0)
    assert torch.equal(both[1, 3:], alone[0, 1:])
    assert graphs(one) == 2


def test_a_longer_prompt_is_no_graph(model: Transformer) -> None:
    one, eager = engine(model, capture=True), engine(model, capture=False)
    prompt = [list(range(1, 10))]
    assert torch.equal(generated(one, prompt), generated(eager, prompt))
    assert graphs(one) == 0


def test_logits_of_a_captured_prompt_can_be_observed(model: Transformer) -> None:
    actual, wanted = (
        engine(model, capture=capture).observe(
            torch.tensor([[1, 2, 3]], device=model.device),
            max_new_tokens=1,
            observed=1,
            sampling=GREEDY,
        )
        for capture in (True, False)
    )
    assert torch.equal(actual[0], wanted[0])
    torch.testing.assert_close(actual[1], wanted[1])
