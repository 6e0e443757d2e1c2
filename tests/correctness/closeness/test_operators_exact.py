"""Each scheme's product compared with the exact one of the weight in the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama_perf.kernels.row_scaled import RowScaled
from scripts.doc_tables.operators import (
    MIN_DB,
    SCHEMES,
    TOKENS,
    documented,
    operator_db,
)


@pytest.mark.parametrize(("scheme", "kernels"), SCHEMES, ids=map(".".join, SCHEMES))
def test_a_product_is_exact_up_to_rounding(scheme: str, kernels: str) -> None:
    db_by_tokens = operator_db(scheme, kernels)
    assert db_by_tokens.keys() == set(TOKENS)
    assert min(db_by_tokens.values()) >= MIN_DB


def test_the_document_has_every_scheme() -> None:
    assert documented() == list(SCHEMES)


def test_a_product_that_is_a_little_off_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = RowScaled.product

    def off(format: RowScaled, x: torch.Tensor, *parts: Any) -> torch.Tensor:
        product = exact(format, x, *parts)
        # The unit vectors, from which the weight is read, keep their products.
        return product if len(x) > 17 else product + 1e-5 * product.abs().max()

    monkeypatch.setattr(RowScaled, "product", off)
    assert max(operator_db("int8wo", "native").values()) < MIN_DB
