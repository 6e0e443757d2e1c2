"""Quantized caches beside the unquantized one on a long text: within their limits."""

from __future__ import annotations

import pytest
import torch
from cache_table import (
    LENGTH,
    LIMITS,
    compared,
    documented,
    logits_with_cache,
    long_tokens,
)
from closeness_table import Limits
from smollm2 import unquantized

from llama_perf.closeness import closeness
from llama_perf.kernels import kv_codes


@pytest.mark.parametrize("kind", LIMITS)
def test_a_cache_keeps_the_logits_within_its_limits(kind: str) -> None:
    assert LIMITS[kind].broken_by(compared(kind)) == []


def test_chunks_through_a_cache_are_the_text_at_once() -> None:
    start = 600
    whole = unquantized().logits(long_tokens()[:, :start])
    found = closeness(
        whole, logits_with_cache(None)[:, :start], long_tokens()[:, :start]
    )
    assert found.signal_to_noise_db > 80
    assert found.top1 == 1.0


def test_damaged_scales_break_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = kv_codes.quantize

    def damaged(
        x: torch.Tensor, kind: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scale = honest(x, kind)
        scale[:, :1] *= 1.25
        return codes, scale

    monkeypatch.setattr(kv_codes, "quantize", damaged)
    length = 512
    ids = long_tokens()[:, :length]
    found = closeness(
        logits_with_cache(None)[:, :length],
        logits_with_cache.__wrapped__("int8", length),
        ids,
    )
    assert LIMITS["int8"].broken_by(found)


def test_the_documented_limits_are_those_that_are_checked() -> None:
    def cells(limits: Limits) -> tuple[str, ...]:
        return (
            f"at least {limits.least_db:.1f}",
            f"at most {limits.most_kl_nats:.5f}",
            f"at least {limits.least_top1:.3f}",
            f"within {limits.most_perplexity_change:.2%}",
        )

    assert documented() == {kind: cells(limits) for kind, limits in LIMITS.items()}


def test_the_text_is_long() -> None:
    assert long_tokens().shape == (1, LENGTH)
