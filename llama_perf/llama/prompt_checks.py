"""Checks that a prompt fits an engine: its batch, its lengths and the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from llama_perf.errors import PromptError


def check_batch(tokens: Tensor, batch_size: int) -> None:
    """Raise PromptError unless `tokens`, (B, T), have that many sequences."""
    if len(tokens) != batch_size:
        raise PromptError(
            f"prompt: a batch of {len(tokens)} is not allowed; the caches hold"
            f" {batch_size}"
        )


def check_lengths(lengths: Tensor, batch_size: int, max_length: int) -> None:
    """Raise PromptError unless int64 (batch_size,), from 1 to `max_length`."""
    if lengths.dtype != torch.int64 or lengths.shape != (batch_size,):
        raise PromptError(
            f"lengths: {lengths.dtype} {tuple(lengths.shape)} is not allowed;"
            f" allowed: int64 ({batch_size},)"
        )
    for length in lengths.tolist():
        if not 1 <= length <= max_length:
            raise PromptError(
                f"lengths: {length} is not allowed; allowed: 1 to {max_length}, the"
                " prompt's length"
            )


def check_room(
    length: int, max_new_tokens: int, *, filled: int, cache_size: int
) -> None:
    """Raise PromptError unless prompt and new tokens fit behind `filled`."""
    if max_new_tokens < 1:
        raise PromptError(
            f"max_new_tokens: {max_new_tokens} is not allowed; allowed: 1 or more"
        )
    if filled + length + max_new_tokens > cache_size:
        before = f"{filled} filled positions + " if filled else ""
        raise PromptError(
            f"prompt: {before}{length} tokens + {max_new_tokens} new ones do not"
            f" fit the cache of {cache_size} positions"
        )
