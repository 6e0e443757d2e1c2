"""Quantized caches on a long text: within their limits from the unquantized one."""

from __future__ import annotations

import pytest
import torch

from llama_perf.kernels import cache_codes
from scripts.doc_tables.caches import (
    LENGTH,
    LIMITS,
    REDRAWN,
    TABLE,
    cells,
    compared,
    logits_with_cache,
    long_tokens,
)
from scripts.doc_tables.figures import closeness
from scripts.doc_tables.smollm2 import unquantized


@pytest.mark.parametrize("kind", LIMITS)
def test_a_cache_keeps_the_logits_within_its_limits(kind: str) -> None:
    assert LIMITS[kind].broken_by(compared(kind)) == []


def test_chunks_through_a_cache_are_the_text_at_once() -> None:
    start = 600
    ids = long_tokens()[:, :start]
    at_once = unquantized().logits(ids)
    figures = closeness(at_once, logits_with_cache(None)[:, :start], ids)
    assert figures.signal_to_noise_db > 80
    assert figures.top1 == 1.0


def test_damaged_scales_break_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    original = cache_codes.quantize

    def damaged(
        x: torch.Tensor, kind: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scale = original(x, kind)
        scale[:, :1] *= 1.25
        return codes, scale

    monkeypatch.setattr(cache_codes, "quantize", damaged)
    length = 512
    ids = long_tokens()[:, :length]
    figures = closeness(
        logits_with_cache(None)[:, :length],
        logits_with_cache.__wrapped__("int8", length),
        ids,
    )
    assert LIMITS["int8"].broken_by(figures)


def test_the_documented_table_is_that_of_the_limits() -> None:
    drawn = {(kind,): cells(kind, redraws) for kind, redraws in REDRAWN.items()}
    assert TABLE.documented() == drawn


def test_the_text_is_long() -> None:
    assert long_tokens().shape == (1, LENGTH)
