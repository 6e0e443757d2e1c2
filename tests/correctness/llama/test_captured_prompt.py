"""A short prompt of a fused engine as one graph, and what its steps draw.

Interpreted on a CPU, as in `test_fused.py`; on a card it is captured for real.
"""

from dataclasses import replace

import pytest
import torch

from llama_perf.llama.engine import Engine
from llama_perf.llama.options import GREEDY, EngineOptions, Sampling
from tests.correctness.llama.test_fused import small_model
from tests.correctness.support.interpreter import device, test_in_the_interpreter

__all__ = ["device", "test_in_the_interpreter"]
Pair = tuple[Engine, Engine]


def engines(device: torch.device, batch: int = 1) -> Pair:
    """One that captures, and an eager one."""
    options = EngineOptions(batch_size=batch, cache_size=24, fused=True)
    model = small_model(None, device)
    return Engine(model, replace(options, capture=True)), Engine(model, options)


@pytest.fixture
def pair(device: torch.device, graphs: list[object]) -> Pair:
    del graphs  # Captures work from here on.
    return engines(device)


def generated(
    engine: Engine,
    prompt: list[list[int]],
    *,
    lengths: list[int] | None = None,
    temperature: float = 0.8,
    seed: int = 0,
) -> list[list[int]]:
    """Each sequence's prompt and two tokens."""
    device = engine.model.device
    generator = torch.Generator(device=device).manual_seed(seed)
    return engine.generate(
        torch.tensor(prompt, device=device),
        max_new_tokens=2,
        lengths=None if lengths is None else torch.tensor(lengths, device=device),
        sampling=Sampling(temperature=temperature, top_k=7, generator=generator),
    ).tolist()


def prompts(one: Engine) -> int:
    """Graphs of prompts."""
    return sum(len(step.prompts) for step in one.captured.values())


def test_one_graph_for_a_length_serves_every_prompt_and_seed(
    pair: Pair, device: torch.device, graphs: list[object]
) -> None:
    one, eager = pair
    drawn = []
    for prompt, seed in (([1, 2, 3], 0), ([7, 8, 9], 1), ([1, 2, 3], 0), ([5, 6], 0)):
        drawn.append(generated(one, [prompt], seed=seed))
        assert drawn[-1] == generated(eager, [prompt], seed=seed)
    assert drawn[0] == drawn[2]
    # Lengths of 3 and 2, and the step's own.
    assert prompts(one) == 2
    assert device.type == "cuda" or len(graphs) == 3
    # A longer prompt is no graph.
    long = [list(range(1, 10))]
    assert generated(one, long) == generated(eager, long)
    assert prompts(one) == 2


def test_a_generation_draws_other_numbers_than_the_one_before(pair: Pair) -> None:
    one, _ = pair
    generator = torch.Generator(device=one.model.device).manual_seed(0)
    prompt = torch.tensor([[1, 2, 3]], device=one.model.device)
    sampling = Sampling(temperature=2.0, generator=generator)
    drawn = [
        one.generate(prompt, max_new_tokens=2, sampling=sampling) for _ in range(3)
    ]
    assert len({tuple(tokens[0].tolist()) for tokens in drawn}) == 3


def test_what_is_filled_stands_before_the_prompt(pair: Pair) -> None:
    before = torch.tensor([[4, 4, 9, 11, 2]], device=pair[0].model.device)
    for length in (2, 5):
        for engine in pair:
            engine.fill(before[:, :length])
        actual, expected = (
            generated(engine, [[1, 2, 3]], temperature=0) for engine in pair
        )
        assert actual == expected
    # Of what is filled differently the graph is of no use any more.
    assert prompts(pair[0]) == 1


def test_sequences_keep_lengths_of_their_own(pair: Pair, device: torch.device) -> None:
    one, eager = engines(device, batch=2)
    prompt = [[1, 2, 3], [7, 8, 9]]
    for lengths in ([2, 3], [3, 1]):
        actual = generated(one, prompt, lengths=lengths)
        assert actual == generated(eager, prompt, lengths=lengths)
    # A sequence is as it would be alone.
    alone = generated(pair[1], [[7]], temperature=0)
    both = generated(one, prompt, lengths=[3, 1], temperature=0)
    assert both[1][3:] == alone[0][1:]
    assert prompts(one) == 2


def test_logits_of_a_captured_prompt_can_be_observed(pair: Pair) -> None:
    prompt = torch.tensor([[1, 2, 3]], device=pair[0].model.device)
    actual, wanted = (
        engine.observe(prompt, max_new_tokens=1, observed=1, sampling=GREEDY)
        for engine in pair
    )
    assert torch.equal(actual[0], wanted[0])
    torch.testing.assert_close(actual[1], wanted[1])
