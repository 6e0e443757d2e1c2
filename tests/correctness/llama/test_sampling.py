import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from llama_perf.llama.decode_step import sample
from llama_perf.llama.options import GREEDY, Sampling

LOGITS = torch.tensor([[0.0, 1.0, 2.0, 0.5, -1.0, 1.5]])


def draws(logits: Tensor, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """How often each token is drawn, of 20000."""
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=temperature, top_k=top_k, generator=generator)
    drawn = sample(logits.expand(20000, -1), sampling)
    assert drawn.shape == (20000, 1)
    assert drawn.dtype == torch.int64
    return torch.bincount(drawn[:, 0], minlength=logits.shape[-1])


def follows(counts: Tensor, logits: Tensor) -> bool:
    """Whether they may be draws from the softmax, by chi-square: 0.1 % would not."""
    expected = logits.double().softmax(-1) * counts.sum()
    return bool(chisquare(counts, expected).pvalue > 0.001)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_its_temperature(temperature: float) -> None:
    counts = draws(LOGITS, temperature)
    assert follows(counts, LOGITS[0] / temperature)
    assert not follows(counts, LOGITS[0] / (temperature * 1.1))
    # Half precision is drawn in single.
    assert torch.equal(draws(LOGITS.bfloat16(), temperature), counts)


def test_top_k_never_leaves_the_k_best_and_keeps_their_proportions() -> None:
    counts = draws(LOGITS, top_k=3)
    best = LOGITS[0].topk(3).indices
    assert counts[best].sum() == 20000
    assert follows(counts[best], LOGITS[0][best])
    # Beyond the vocabulary it is all of it.
    assert torch.equal(draws(LOGITS, top_k=200), draws(LOGITS))


def test_temperature_zero_takes_the_best() -> None:
    logits = torch.randn((7, 50))
    assert torch.equal(sample(logits, GREEDY)[:, 0], logits.argmax(-1))


def test_rows_of_a_batch_are_drawn_for_themselves() -> None:
    drawn = sample(torch.zeros((64, 1000)), Sampling(temperature=1.0, top_k=None))
    assert len(drawn.unique()) > 50
