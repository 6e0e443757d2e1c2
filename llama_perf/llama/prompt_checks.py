"""Checks of a prompt: its ids, its lengths, and that it fits an engine's cache."""

import torch
from torch import Tensor

from llama_perf.errors import PromptError


def refused(field: str, value: object, allowed: str) -> PromptError:
    """The error that says so."""
    return PromptError(f"{field}: {value} is not allowed; {allowed}")


def check_tokens(tokens: Tensor, vocab_size: int, batch_size: int | None) -> None:
    """Raise PromptError unless int64 (batch, length) of known ids.

    `batch_size` is how many sequences the caches hold; None where there are none.
    """
    if tokens.dtype != torch.int64 or tokens.ndim != 2 or tokens.numel() == 0:
        allowed = "allowed: int64 (batch, length), neither of them 0"
        raise refused("tokens", f"{tokens.dtype} {tuple(tokens.shape)}", allowed)
    for token in map(int, tokens.aminmax()):
        if not 0 <= token < vocab_size:
            allowed = f"the vocabulary has ids 0 to {vocab_size - 1}"
            raise refused("tokens", f"id {token}", allowed)
    if batch_size not in (None, len(tokens)):
        allowed = f"the caches hold {batch_size}"
        raise refused("prompt", f"a batch of {len(tokens)}", allowed)


def check_lengths(lengths: Tensor, batch_size: int, max_length: int) -> None:
    """Raise PromptError unless int64 (batch_size,), from 1 to `max_length`."""
    if lengths.dtype != torch.int64 or lengths.shape != (batch_size,):
        kind = f"{lengths.dtype} {tuple(lengths.shape)}"
        raise refused("lengths", kind, f"allowed: int64 ({batch_size},)")
    for length in lengths.tolist():
        if not 1 <= length <= max_length:
            allowed = f"allowed: 1 to {max_length}, the prompt's length"
            raise refused("lengths", length, allowed)


def check_room(length: int, new: int, *, filled: int, cache_size: int) -> None:
    """Raise PromptError unless prompt and `new` tokens fit behind `filled`."""
    if new < 1:
        raise refused("max_new_tokens", new, "allowed: 1 or more")
    if filled + length + new > cache_size:
        before = f"{filled} filled positions + " if filled else ""
        raise PromptError(
            f"prompt: {before}{length} tokens + {new} new ones do not fit the cache of"
            f" {cache_size} positions"
        )
