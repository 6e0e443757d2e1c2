from __future__ import annotations

import torch

from llama_perf.llama.sampling import GREEDY, Sampling, sample


def draws(logits: torch.Tensor, *, temperature: float, top_k: int | None) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    many = logits.expand(20000, -1)
    drawn = sample(
        many, Sampling(temperature=temperature, top_k=top_k, generator=generator)
    )
    assert drawn.shape == (20000, 1)
    assert drawn.dtype == torch.int64
    return torch.bincount(drawn[:, 0], minlength=logits.shape[-1]).tolist()


def chi_square(counts: list[int], probabilities: torch.Tensor) -> float:
    expected = probabilities.double() * sum(counts)
    return float(((torch.tensor(counts) - expected) ** 2 / expected).sum())


LOGITS = torch.tensor([[0.0, 1.0, 2.0, 0.5, -1.0, 1.5]])
# The 99.9 % point of chi-square with 5 degrees of freedom, and with 2.
LIMIT_5, LIMIT_2 = 20.5, 13.8


def test_draws_follow_the_softmax_at_its_temperature() -> None:
    for temperature in (0.5, 1.0, 2.0):
        counts = draws(LOGITS, temperature=temperature, top_k=None)
        right = (LOGITS[0] / temperature).softmax(-1)
        assert chi_square(counts, right) < LIMIT_5
        assert chi_square(counts, (LOGITS[0] / (temperature * 1.1)).softmax(-1)) > (
            LIMIT_5
        )


def test_top_k_never_leaves_the_k_best_and_keeps_their_proportions() -> None:
    counts = draws(LOGITS, temperature=1.0, top_k=3)
    best = LOGITS[0].topk(3).indices
    assert sum(counts[index] for index in best.tolist()) == 20000
    best_counts = [counts[index] for index in best.tolist()]
    assert chi_square(best_counts, LOGITS[0][best].softmax(-1)) < LIMIT_2


def test_top_k_beyond_the_vocabulary_is_all_of_it() -> None:
    every = draws(LOGITS, temperature=1.0, top_k=None)
    assert draws(LOGITS, temperature=1.0, top_k=200) == every


def test_temperature_zero_takes_the_best() -> None:
    logits = torch.randn((7, 50), generator=torch.Generator().manual_seed(1))
    drawn = sample(logits, GREEDY)
    assert torch.equal(drawn[:, 0], logits.argmax(-1))


def test_rows_of_a_batch_are_drawn_for_themselves() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.zeros((64, 1000))
    drawn = sample(logits, Sampling(temperature=1.0, top_k=None, generator=generator))
    assert len(set(drawn[:, 0].tolist())) > 50


def test_half_precision_logits_are_drawn_in_single() -> None:
    counts = draws(LOGITS.to(torch.bfloat16), temperature=1.0, top_k=None)
    assert chi_square(counts, LOGITS[0].softmax(-1)) < LIMIT_5
