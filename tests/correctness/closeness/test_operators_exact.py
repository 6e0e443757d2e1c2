"""Each scheme's product beside the exact one with the weight that the layer holds."""

from __future__ import annotations

import pytest
import torch

from llama_perf.quantize import int8wo
from scripts.doc_tables.operators import (
    MIN_DB,
    SCHEMES,
    TOKENS,
    documented,
    operator_db,
)


@pytest.mark.parametrize(("scheme", "kernels"), SCHEMES, ids=map(".".join, SCHEMES))
def test_a_product_is_exact_up_to_rounding(scheme: str, kernels: str) -> None:
    found = operator_db(scheme, kernels)
    assert found.keys() == set(TOKENS)
    assert min(found.values()) >= MIN_DB


def test_the_document_has_every_scheme() -> None:
    assert documented() == list(SCHEMES)


def test_a_product_that_is_a_little_off_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = int8wo.int8_weight

    def off(x: torch.Tensor, *parts: object) -> torch.Tensor:
        product: torch.Tensor = original(x, *parts)
        # The unit vectors, which the weight is read off, are left alone.
        return product if len(x) > 17 else product + 1e-5 * product.abs().max()

    monkeypatch.setattr(int8wo, "int8_weight", off)
    assert max(operator_db("int8wo", "native").values()) < MIN_DB
