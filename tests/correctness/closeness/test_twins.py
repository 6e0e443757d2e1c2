"""Native schemes compared with torchao's, and every product with the exact one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf.kernels import int8_dynamic
from llama_perf.kernels.row_scaled import RowScaled
from scripts.doc_tables import operators, twins
from scripts.doc_tables.operators import SCHEMES, operator_db


@pytest.mark.parametrize("scheme", twins.QUICK)
def test_a_native_model_is_no_further_than_torchaos_twin(scheme: str) -> None:
    pair = twins.twins(scheme)
    assert not pair.further, pair


def test_native_int8dq_rounds_the_same_activations_as_well_as_torchao() -> None:
    assert twins.products_ratio("int8dq") <= twins.MAX_PRODUCTS_RATIO


def test_activations_that_are_rounded_worse_are_detected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = int8_dynamic.quantize_tokens

    def coarser(x: Tensor) -> tuple[Tensor, Tensor]:
        _, scale = original(x)
        scale = scale * 1.02
        return torch.round(x / scale).to(torch.int8), scale

    monkeypatch.setattr(int8_dynamic, "quantize_tokens", coarser)
    assert twins.products_ratio("int8dq", blocks=(4, 14)) > twins.MAX_PRODUCTS_RATIO


def test_every_twin_is_documented_and_none_is_further() -> None:
    rows = twins.TABLE.documented()
    assert tuple(scheme for (scheme,) in rows) == twins.TWINS
    assert max(float(row[3]) for row in rows.values()) <= 2.0


def test_a_difference_at_most_positions_is_distinguished_from_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(400, generator=generator, dtype=torch.float64)
    noise = torch.randn(400, generator=generator, dtype=torch.float64) * 0.02
    assert twins.compare_twins(hard * 1.1, hard + noise * 0.1).further
    assert not twins.compare_twins(hard, hard * 1.1 + noise * 0.1).further
    assert not twins.compare_twins(hard + noise - noise.mean(), hard).further
    # Where both hold the same weights nothing but rounding differs.
    assert twins.compare_twins(hard, hard).errors == 0
    assert not twins.compare_twins(hard + 1e-7 + noise * 1e-7, hard).further


@pytest.mark.parametrize(("scheme", "kernels"), SCHEMES, ids=map(".".join, SCHEMES))
def test_a_product_is_exact_up_to_rounding(scheme: str, kernels: str) -> None:
    db_by_tokens = operator_db(scheme, kernels)
    assert db_by_tokens.keys() == set(operators.TOKENS)
    assert min(db_by_tokens.values()) >= operators.MIN_DB


def test_the_document_has_every_scheme() -> None:
    assert list(operators.TABLE.documented()) == list(SCHEMES)


def test_a_product_that_is_a_little_off_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = RowScaled.product

    def off(format: RowScaled, x: Tensor, *parts: Any) -> Tensor:
        product = exact(format, x, *parts)
        # The unit vectors, from which the weight is read, keep their products.
        return product if len(x) > 17 else product + 1e-5 * product.abs().max()

    monkeypatch.setattr(RowScaled, "product", off)
    assert max(operator_db("int8wo", "native").values()) < operators.MIN_DB
