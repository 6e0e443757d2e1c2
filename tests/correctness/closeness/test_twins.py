from __future__ import annotations

import pytest
import torch

from llama_perf.kernels import int8_dynamic
from scripts.doc_tables.twins import (
    MAX_PRODUCTS_RATIO,
    QUICK,
    TABLE,
    TWINS,
    compare_twins,
    products_ratio,
    twins,
)


@pytest.mark.parametrize("scheme", QUICK)
def test_a_native_model_is_no_further_than_torchaos_twin(scheme: str) -> None:
    pair = twins(scheme)
    assert not pair.further, pair


def test_native_int8dq_rounds_the_same_activations_as_well_as_torchao() -> None:
    assert products_ratio("int8dq") <= MAX_PRODUCTS_RATIO


def test_activations_that_are_rounded_worse_are_detected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = int8_dynamic.quantize_tokens

    def coarser(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, scale = original(x)
        scale = scale * 1.02
        return torch.round(x / scale).to(torch.int8), scale

    monkeypatch.setattr(int8_dynamic, "quantize_tokens", coarser)
    assert products_ratio("int8dq", blocks=(4, 14)) > MAX_PRODUCTS_RATIO


def test_every_twin_is_documented_and_none_is_further() -> None:
    rows = TABLE.documented()
    assert tuple(scheme for (scheme,) in rows) == TWINS
    assert max(float(row[3]) for row in rows.values()) <= 2.0


def test_a_difference_at_most_positions_is_distinguished_from_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(400, generator=generator, dtype=torch.float64)
    noise = torch.randn(400, generator=generator, dtype=torch.float64) * 0.02
    assert compare_twins(hard * 1.1, hard + noise * 0.1).further
    assert not compare_twins(hard, hard * 1.1 + noise * 0.1).further
    assert not compare_twins(hard + noise - noise.mean(), hard).further
    # Where both hold the same weights nothing but rounding differs.
    assert compare_twins(hard, hard).errors == 0
    assert not compare_twins(hard + 1e-7 + noise * 1e-7, hard).further
