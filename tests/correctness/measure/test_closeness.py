"""Closeness to the unquantized model, and that computing it leaves no trace."""

import gc
import weakref
from dataclasses import replace
from math import log10
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf.checkpoints import load
from llama_perf.checkpoints.load import OpenedModel, load_model
from llama_perf.measure.closeness import closeness_db
from llama_perf.measure.prepare import PreparedRow
from llama_perf.measure.value_check import Observed, signal_to_noise_db, warm_up_row
from llama_perf.results.measurement import Ceiling
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from tests.correctness.support.small_rows import built, checkpoints

ROW = RowSpec(model="own", device="cpu", dtype="float32", quantization="int8wo")
ROW = replace(ROW, max_new_tokens=4, num_samples=1)


def observed(prepared: PreparedRow) -> Observed:
    return warm_up_row(prepared, torch.Generator().manual_seed(0))


def by_whole_models(prepared: PreparedRow, seen: Observed) -> float:
    """The same by the logits of two models over each sequence's own text."""
    model = load_model(Path(checkpoints().name) / prepared.row.model)
    power = noise = 0.0
    lengths = seen.lengths
    for number, (prompt, tokens) in enumerate(
        zip(seen.prompt, seen.tokens, strict=True)
    ):
        length = len(prompt) if lengths is None else int(lengths[number])
        text = torch.cat((prompt[:length], tokens[:-1]))[None]
        wanted = model.logits(text)[0, length - 1 :]
        power += float(wanted.square().sum())
        noise += float((seen.logits[number].float() - wanted).square().sum())
    return 10 * log10(power / noise)


@pytest.mark.parametrize(
    "fields",
    [
        {"quantization": "int8wo"},
        {"quantization": "uintx-4-64", "model": "tied"},
        {"quantization": "int8wo", "kernels": "torchao", "model": "tied"},
        {"quantization": "int4wo-64", "batch_size": 3, "ragged": True},
        {"kv_cache_quantization": True},
        {"quantization": "int8dq", "prompt_length": 100, "attention": "sdpa"},
    ],
    ids=str,
)
def test_it_is_that_of_two_models_over_the_same_text(fields: dict[str, Any]) -> None:
    prepared = built(**fields)
    seen = observed(prepared)
    actual = closeness_db(prepared, seen)
    assert actual == pytest.approx(by_whole_models(prepared, seen), abs=0.1)
    assert 3 < (actual or 0.0) < 60


@pytest.mark.parametrize("model", ["own", "tied"])
def test_an_unquantized_row_has_it_too(model: str) -> None:
    prepared = built(model)
    assert 100 < (closeness_db(prepared, observed(prepared)) or 0.0) <= 200


def test_signal_to_noise_by_hand() -> None:
    wanted = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    assert signal_to_noise_db(wanted, wanted) == 200
    # Half of the logits: a noise of a quarter of the power.
    assert signal_to_noise_db(wanted, wanted / 2) == pytest.approx(10 * log10(4))
    # Of two positions with powers of 25 and 100 only the first has a noise, of 25.
    logits = torch.stack((torch.zeros(2), wanted[1]))
    assert signal_to_noise_db(wanted, logits) == pytest.approx(10 * log10(125 / 25))
    assert signal_to_noise_db(wanted, logits, worst=True) == 0
    assert signal_to_noise_db(torch.zeros(2), wanted) == -200


def test_rounding_to_bfloat16_counts() -> None:
    prepared = built(dtype="bfloat16")
    assert 20 < (closeness_db(prepared, observed(prepared)) or 0.0) < 60


@pytest.mark.parametrize(
    "fields", [{"fill": 20}, {"fill": 20, "quantization": "int8wo"}, {"keep": False}]
)
def test_it_is_unknown_where_the_reference_would_cost_too_much(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = built(**fields)
    assert closeness_db(prepared, observed(prepared)) is None
    # Weights that are too large to keep.
    monkeypatch.setattr(load, "KEPT_BYTES", 1000)
    assert built().unquantized is None


def test_it_leaves_no_trace_in_the_row() -> None:
    prepared = built(quantization="int8wo")
    seen = observed(prepared)
    generator = torch.Generator().manual_seed(5)

    def traces() -> list[Tensor]:
        tensors = [tensor.clone() for tensor in prepared.engine.cache_tensors()]
        return [*tensors, generator.get_state(), torch.get_rng_state(), seen.tokens]

    before = traces()
    assert closeness_db(prepared, seen) is not None
    for was, now in zip(before, traces(), strict=True):
        assert torch.equal(was, now)


def new_session() -> Session:
    return Session(["cpu"], options=RunRequest(checkpoints=Path(checkpoints().name)))


def test_a_session_measures_it_and_the_same_bytes_as_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = new_session()
    monkeypatch.setattr(session, "ceiling", lambda _device: Ceiling(read_gb_s=10.0))
    with_it = session.run_row(ROW).measurement
    without_weights = OpenedModel(checkpoints=Path(checkpoints().name))
    monkeypatch.setattr(session, "_opened", without_weights)
    without = session.run_row(ROW).measurement
    assert with_it is not None
    assert without is not None
    assert 25 < (with_it.closeness_db or 0.0) < 45
    assert without.closeness_db is None
    assert with_it.peak_allocated_bytes == without.peak_allocated_bytes
    assert with_it.check is not None
    assert without.check is not None
    db = with_it.check.signal_to_noise_db
    assert without.check.signal_to_noise_db == db


def test_a_row_that_is_kept_for_pairs_keeps_no_other_models_weights() -> None:
    session = new_session()
    assert session.prepare(ROW) == ()
    assert session._opened.unquantized is not None
    weights = weakref.ref(session._opened.unquantized)
    session.forget()
    assert session.load(replace(ROW, dtype="bfloat16")) == ()
    gc.collect()
    assert weights() is None
