"""A short prompt of a fused engine as one graph, and what its steps draw.

Interpreted on a CPU, as in `test_fused.py`; on a card it is captured for real.
"""

from unittest.mock import Mock

import pytest
import torch

from llama_perf.llama.engine import Engine
from llama_perf.llama.options import GREEDY, Sampling
from tests.correctness.support.fused import Pair, both, small_model

pytestmark = pytest.mark.usefixtures("graphs")


@pytest.fixture
def pair(card: torch.device) -> Pair:
    """An eager engine, and one that captures."""
    return both(small_model(None, card), changed="capture", fused=True)


def drawn(
    pair: Pair, prompt: list[list[int]], lengths: list[int] | None = None, seed: int = 0
) -> list[list[int]]:
    """The prompt and two tokens a sequence, which both engines draw."""
    device = pair[0].model.device
    eager, captured = (
        engine.generate(
            torch.tensor(prompt, device=device),
            max_new_tokens=2,
            lengths=None if lengths is None else torch.tensor(lengths, device=device),
            sampling=Sampling(top_k=7, seed=seed),
        )
        for engine in pair
    )
    assert torch.equal(eager, captured)
    tokens: list[list[int]] = captured.tolist()
    return tokens


def prompts(one: Engine) -> int:
    """Graphs of prompts."""
    return sum(len(step.prompts) for step in one.captured.values())


def test_one_graph_for_a_length_serves_every_prompt_and_seed(
    pair: Pair, card: torch.device, graphs: Mock
) -> None:
    cases = (([1, 2, 3], 0), ([7, 8, 9], 1), ([1, 2, 3], 0), ([5, 6], 0))
    tokens = [drawn(pair, [prompt], seed=seed) for prompt, seed in cases]
    assert tokens[0] == tokens[2]
    # Lengths of 3 and 2, and the step's own.
    assert prompts(pair[1]) == 2
    assert card.type == "cuda" or graphs.call_count == 3
    # A longer prompt is no graph.
    drawn(pair, [list(range(1, 10))])
    assert prompts(pair[1]) == 2


def test_a_generation_draws_other_numbers_than_the_one_before(pair: Pair) -> None:
    generator = torch.Generator(device=pair[1].model.device).manual_seed(0)
    prompt = torch.tensor([[1, 2, 3]], device=generator.device)
    sampling = Sampling(temperature=2.0, generator=generator)
    draws = {
        tuple(pair[1].generate(prompt, max_new_tokens=2, sampling=sampling)[0].tolist())
        for _ in range(3)
    }
    assert len(draws) == 3


def test_what_is_filled_stands_before_the_prompt(pair: Pair) -> None:
    before = torch.tensor([[4, 4, 9, 11, 2]], device=pair[0].model.device)
    for length in (2, 5):
        for engine in pair:
            engine.fill(before[:, :length])
        drawn(pair, [[1, 2, 3]])
    # Of what is filled differently the graph is of no use any more.
    assert prompts(pair[1]) == 1


def test_sequences_keep_lengths_of_their_own(card: torch.device) -> None:
    model = small_model(None, card)
    two = both(model, changed="capture", fused=True, batch_size=2)
    prompt = [[1, 2, 3], [7, 8, 9]]
    for lengths in ([2, 3], [3, 1]):
        drawn(two, prompt, lengths)
    assert prompts(two[1]) == 1


def test_logits_of_a_captured_prompt_can_be_observed(pair: Pair) -> None:
    prompt = torch.tensor([[1, 2, 3]], device=pair[0].model.device)
    expected, actual = (
        engine.observe(prompt, max_new_tokens=1, observed=1, sampling=GREEDY)
        for engine in pair
    )
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1])
