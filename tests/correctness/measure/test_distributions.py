"""The figures of two models' logits, against the formulas written out."""

import math

import pytest
import torch

from llama_perf.errors import ValuesError
from llama_perf.measure.distributions import ComparedLogits, is_best
from llama_perf.measure.value_check import signal_to_noise_db
from tests.correctness.support.errors import refusal

VOCABULARY = 50


def compared(
    row: torch.Tensor, twin: torch.Tensor, ids: torch.Tensor
) -> ComparedLogits:
    """Over all positions, three at a time."""
    sums = ComparedLogits()
    for start in range(0, len(ids), 3):
        part = slice(start, start + 3)
        sums.add(row[part], twin[part], ids[part])
    return sums


def test_each_figure_by_its_formula() -> None:
    twin = 3 * torch.randn(10, VOCABULARY)
    row = twin + 0.5 * torch.randn(10, VOCABULARY)
    ids = torch.randint(VOCABULARY, (10,))
    figures = compared(row, twin, ids)
    assert figures.db == pytest.approx(signal_to_noise_db(twin, row), abs=1e-4)
    kl = alike = surprise = twin_surprise = 0.0
    for ours, theirs, id in zip(row.tolist(), twin.tolist(), ids.tolist(), strict=True):
        q = [math.exp(logit) / sum(map(math.exp, ours)) for logit in ours]
        p = [math.exp(logit) / sum(map(math.exp, theirs)) for logit in theirs]
        kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 10
        alike += (q.index(max(q)) == p.index(max(p))) / 10
        surprise -= math.log(q[id]) / 10
        twin_surprise -= math.log(p[id]) / 10
    assert figures.kl_nats == pytest.approx(kl)
    assert 0 < alike < 1
    assert figures.top1_share == pytest.approx(alike)
    assert figures.perplexity == pytest.approx(math.exp(surprise))
    assert figures.twin_perplexity == pytest.approx(math.exp(twin_surprise))


def test_of_the_same_logits_nothing_differs() -> None:
    # In bfloat16 some positions have several most probable tokens.
    logits = torch.randn(40, VOCABULARY).to(torch.bfloat16)
    assert int((logits == logits.amax(-1, keepdim=True)).sum()) > 40
    figures = compared(logits, logits.clone(), torch.zeros(40, dtype=torch.int64))
    assert (figures.db, figures.kl_nats, figures.top1_share) == (200, 0, 1)
    assert figures.perplexity == figures.twin_perplexity


def test_a_tie_is_no_difference_on_either_side() -> None:
    tied, first = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.5, 0.0]])
    second, third = first[:, [1, 0, 2]], first[:, [2, 1, 0]]
    zero = torch.zeros(1, dtype=torch.int64)
    for row, twin, alike in (
        *((tied, first, 1), (tied, second, 1), (first, tied, 1), (second, tied, 1)),
        *((tied, third, 0), (third, tied, 0), (first, second, 0)),
    ):
        assert compared(row, twin, zero).top1_share == alike
    assert is_best(tied, torch.tensor([[0]]))
    assert is_best(tied, torch.tensor([[1]]))
    assert not is_best(tied, torch.tensor([[2]]))


def test_a_small_divergence_is_not_lost_in_rounding() -> None:
    twin = torch.randn(4, VOCABULARY, dtype=torch.float64)
    row = twin.clone()
    row[:, 0] += 1e-6
    p = twin.softmax(-1)[:, 0]
    # The second order of the divergence; all lower ones vanish.
    expected = float((p * (1 - p)).mean()) * 1e-12 / 2
    figures = compared(row, twin, torch.zeros(4, dtype=torch.int64))
    assert figures.kl_nats == pytest.approx(expected, rel=0.05)


def test_a_hopeless_row_has_finite_figures() -> None:
    row = torch.zeros(1, VOCABULARY, dtype=torch.float64)
    row[0, 0] = 1e9
    figures = compared(row, torch.zeros_like(row), torch.ones(1, dtype=torch.int64))
    assert all(map(math.isfinite, (figures.db, figures.perplexity, figures.kl_nats)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(value: float) -> None:
    good, bad = torch.zeros(1, 3), torch.full((1, 3), value)
    ids = torch.zeros(1, dtype=torch.int64)
    words = "logits hold NaN or infinity"
    error = refusal(compared, bad, good, ids, error=ValuesError)
    assert error == f"closeness: its {words}"
    error = refusal(compared, good, bad, ids, error=ValuesError)
    assert error == f"closeness: its unquantized twin's {words}"
