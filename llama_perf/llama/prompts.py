"""Whether a prompt and the tokens behind it fit an engine's caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llama_perf.errors import PromptError
from llama_perf.llama.transformer import check_tokens
from llama_perf.words import counted

if TYPE_CHECKING:
    from llama_perf.llama.engine import Engine


def check_fits(
    engine: Engine, prompt: Tensor, max_new_tokens: int, lengths: Tensor | None
) -> None:
    """Raise PromptError unless the prompt and the new tokens fit `engine`."""
    batch = engine.options.batch_size
    check_tokens(prompt, engine.model.config.vocab_size, batch)
    length = prompt.shape[1]
    if lengths is not None:
        if engine.options.attention == "sdpa":
            raise PromptError("lengths: not allowed with attention 'sdpa'")
        if lengths.dtype != torch.int64 or lengths.shape != (batch,):
            kind = f"{lengths.dtype} {tuple(lengths.shape)} is not allowed"
            raise PromptError(f"lengths: {kind}; allowed: int64 ({batch},)")
        for own in lengths.tolist():
            if not 1 <= own <= length:
                allowed = f"allowed: 1 to {length}, the prompt's length"
                raise PromptError(f"lengths: {own} is not allowed; {allowed}")
    if max_new_tokens < 1:
        new = f"{max_new_tokens} is not allowed"
        raise PromptError(f"max_new_tokens: {new}; allowed: 1 or more")
    if engine.filled + length + max_new_tokens > engine.cache_size:
        before = f"{engine.filled} filled positions + " if engine.filled else ""
        raise PromptError(
            f"prompt: {before}{counted(length, 'token')} +"
            f" {counted(max_new_tokens, 'new one')} do not fit the cache of"
            f" {counted(engine.cache_size, 'position')}"
        )
