"""A row beside its unquantized twin over a text: every way of running it, every figure.

The figures are compared with those of two whole models.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf.checkpoints.load import OpenedModel, build_model, open_model
from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.checkpoints.save import save_model
from llama_perf.errors import NotRunnable, ValuesError
from llama_perf.llama.transformer import Transformer, is_unquantized
from llama_perf.measure import closeness
from llama_perf.measure.closeness import measure_closeness
from llama_perf.measure.closeness_text import Text, text_of
from llama_perf.measure.distributions import ComparedLogits
from llama_perf.measure.prepare import PreparedRow, prepare_row
from llama_perf.measure.value_check import damaged_scale
from llama_perf.results.measurement import Closeness
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.engines import CPU, SMALL, greedy
from tests.correctness.support.errors import refusal
from tests.correctness.support.small_rows import built, checkpoints

# Few tokens: a test shows how they are compared, not how close a scheme is.
TEXT = text_of(None, SMALL.vocab_size, tokens=36)
GREEDY = 12


@pytest.fixture(autouse=True)
def _few_greedy_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closeness, "GREEDY_TOKENS", GREEDY)


def weights_of(model: str = "own") -> WeightsReader:
    folder = Path(checkpoints().name)
    return open_model(model, checkpoints=folder, dtype=torch.float32, device=CPU)[0]


def measured(prepared: PreparedRow, text: Text = TEXT, **options: Any) -> Closeness:
    return measure_closeness(prepared, weights_of(prepared.row.model), text, **options)


def packed(model: Transformer) -> list[Any]:
    """Its quantized weights."""
    weights = model.parameters()
    return [weight for weight in weights if not is_unquantized(weight)]


WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"fused": True},
    {"attention": "sdpa"},
    {"attention": "sdpa", "linear_causal_mask": True, "model": "tied"},
    {"prefill_chunk": 3, "prompt_length": 10},
    {"batch_size": 3},
    {"batch_size": 3, "ragged": True},
    {"fill": 20},
    {"fill": 20, "cache_size": 90, "prompt_length": 50},
    {"max_new_tokens": 200, "model": "tied"},
    {"temperature": 0.0},
)


@pytest.mark.parametrize("fields", WAYS, ids=str)
def test_an_unquantized_row_is_its_own_twin(fields: dict[str, Any]) -> None:
    figures = measured(built(**fields))
    assert 100 < figures.db <= 200
    assert figures.kl_nats < 1e-9
    assert figures.top1_share == 1
    assert figures.same_greedy_tokens == figures.greedy_tokens
    assert figures.greedy_tokens == GREEDY
    assert figures.perplexity == pytest.approx(figures.twin_perplexity, rel=1e-5)
    assert (figures.tokens, figures.text) == (36, TEXT.summary)


def by_whole_models(prepared: PreparedRow, prompt_length: int) -> ComparedLogits:
    """The figures of the row's model and of the unquantized one over the text."""
    twin = build_model(weights_of(), dtype=torch.float32, device=CPU)
    ids, sums = TEXT.ids, ComparedLogits()
    row, wanted = (
        model.logits(ids[None, :-1])[0, prompt_length - 1 :]
        for model in (prepared.engine.architecture, twin)
    )
    sums.add(row, wanted, ids[prompt_length:])
    return sums


@pytest.mark.parametrize(
    "fields",
    [
        {"quantization": "int8wo"},
        {"quantization": "int8wo", "fused": True},
        {"quantization": "int4wo-64", "batch_size": 2, "ragged": True},
        {"quantization": "uintx-4-64", "attention": "sdpa", "prompt_length": 15},
        {"quantization": "int8wo", "kernels": "torchao"},
    ],
    ids=str,
)
def test_its_figures_are_those_of_two_whole_models(fields: dict[str, Any]) -> None:
    prepared = built(**fields)
    figures = measured(prepared)
    expected = by_whole_models(prepared, prepared.row.prompt_length)
    assert figures.db == pytest.approx(expected.db, abs=0.05)
    assert figures.kl_nats == pytest.approx(expected.kl_nats, rel=0.01)
    assert figures.top1_share == pytest.approx(expected.top1_share, abs=1e-4)
    assert figures.perplexity == pytest.approx(expected.perplexity, rel=1e-3)
    twin_perplexity = pytest.approx(expected.twin_perplexity, rel=1e-4)
    assert figures.twin_perplexity == twin_perplexity
    assert 3 < figures.db < 60


def test_greedy_tokens_count_up_to_the_first_that_the_twin_does_not_choose() -> None:
    quantized, twin = built(quantization="uintx-4-64"), built()
    prompt = TEXT.ids[None, : quantized.row.prompt_length]
    ours, theirs = (
        greedy(side.engine.longer(200), prompt, GREEDY) for side in (quantized, twin)
    )
    same = int((ours == theirs)[0, prompt.shape[1] :].cumprod(0).sum())
    assert 0 < same < GREEDY
    assert measured(quantized).same_greedy_tokens == same


def test_a_quantized_cache_alone_is_compared_as_well() -> None:
    eight = measured(built(kv_cache_quantization=True))
    both = measured(built(kv_cache_quantization=True, quantization="int8wo"))
    assert 25 < both.db < eight.db < 70
    # Filled positions are codes too.
    filled = measured(built(kv_cache_quantization=True, fill=40, prompt_length=2))
    assert filled.db == pytest.approx(eight.db, abs=6)


def test_a_damaged_scale_shows() -> None:
    prepared = built(quantization="int8wo")
    whole = measured(prepared)
    with damaged_scale(prepared.engine):
        broken = measured(prepared)
    assert broken.db < 5 < 25 < whole.db
    assert broken.kl_nats > 100 * whole.kl_nats
    assert broken.top1_share < whole.top1_share
    assert measured(prepared).db == whole.db


def test_logits_that_are_no_numbers_end_the_row() -> None:
    prepared = built(quantization="int8wo")
    prepared.engine.architecture.norm.weight.data[0] = torch.nan
    words = "closeness: its logits hold NaN or infinity"
    assert refusal(measured, prepared, error=ValuesError) == words


def test_weights_that_were_saved_quantized_have_no_twin(tmp_path: Path) -> None:
    prepared = built(quantization="int8wo")
    save_model(prepared.engine.architecture, tmp_path / "saved")
    row = RowSpec(model=str(tmp_path / "saved"), dtype="float32", device="cpu")
    opened = OpenedModel()
    again = prepare_row(row, opened=opened)
    reader, _ = opened(row.model, dtype=torch.float32, device=CPU)
    message = refusal(measure_closeness, again, reader, TEXT, error=NotRunnable)
    assert re.fullmatch(
        r"closeness: the weights before quantization are not at hand; these are"
        r" int8wo, native, from pth:own",
        message,
    )


def test_a_cache_that_a_row_fixes_limits_the_text() -> None:
    told: list[str] = []
    small = built(quantization="int8wo", cache_size=33, max_new_tokens=8)
    figures = measured(small, notify=told.append)
    assert figures.tokens == 33
    assert figures.greedy_tokens == GREEDY
    assert told == [
        "closeness: 33 of the 36 tokens of the text are read: cache_size: 33 has no"
        " room for more"
    ]
    # It is another text, with which no figure of the whole one is compared.
    assert figures.text != TEXT.summary
    assert figures.text == TEXT.first(33).summary
    tiny = built(quantization="int8wo", cache_size=31)
    assert refusal(measured, tiny, error=NotRunnable) == (
        "closeness: cache_size: 31 has room for 31 tokens of a text; at least 32 are"
        " needed"
    )


def test_it_leaves_the_rows_weights_and_draws_as_they_were() -> None:
    prepared = built(quantization="int8wo")
    model = prepared.engine.architecture
    before = [quantized.dequantize().clone() for quantized in packed(model)]
    state = torch.get_rng_state()
    measured(prepared)
    assert prepared.engine.cache_size == prepared.row.allocated_positions
    for was, now in zip(before, packed(model), strict=True):
        assert torch.equal(was, now.dequantize())
    assert torch.equal(state, torch.get_rng_state())


def test_it_says_how_far_it_is() -> None:
    told: list[str] = []
    measured(built(quantization="int8wo"), progress=told.append)
    twin = ["twin: layer 1 of 2", "twin: layer 2 of 2"]
    assert told == twin
