"""A generation in one call: `llama_perf.generate`."""

from __future__ import annotations

import torch
from torch import Tensor

from llama_perf.errors import PromptError, SpecError
from llama_perf.llama.engine import Engine
from llama_perf.llama.transformer import Transformer
from llama_perf.rows.spec import cache_kind, check_attention, check_sampling


def generate(
    model: Transformer,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    lengths: Tensor | None = None,
    temperature: float = 0.8,
    top_k: int | None = 200,
    seed: int | None = None,
    cache_size: int | None = None,
    kv_cache_quantization: bool | str = False,
    attention: str = "decode",
    compile: bool = False,
) -> Tensor:
    """Generate from `prompt`, int64 (batch, length); (batch, length + new) int64.

    With `lengths`, int64 (batch,), sequence i of the prompt is its first lengths[i]
    tokens; the new ones stand behind column length for all. `temperature` 0 is greedy;
    `top_k` None draws from the whole vocabulary; `seed` makes the draws repeatable on
    one device type; `cache_size` counts positions and is as large as needed where not
    given. `kv_cache_quantization` is False, True or "int8", or "fp8"; `attention` is
    "decode" or "sdpa". Raises PromptError for a prompt that does not fit, SpecError for
    another argument that is not allowed.
    """
    if prompt.ndim != 2:
        raise PromptError(
            f"prompt: shape {tuple(prompt.shape)} is not allowed; allowed: (batch,"
            " length)"
        )
    batch, length = prompt.shape
    check_sampling(temperature=temperature, top_k=top_k)
    check_attention(attention)
    if cache_size is None:
        cache_size = max(length + max_new_tokens, 1)
    elif cache_size < 1:
        raise SpecError("cache_size", cache_size, "allowed: 1 or more positions")
    engine = Engine(
        model,
        batch_size=max(batch, 1),
        cache_size=cache_size,
        kv_cache=cache_kind(kv_cache_quantization),
        attention=attention,
        compile=compile,
    )
    engine.check_prompt(prompt, max_new_tokens=max_new_tokens, lengths=lengths)
    generator = None
    if seed is not None:
        generator = torch.Generator(device=model.device).manual_seed(seed)
    return engine.generate(
        prompt.to(model.device),
        max_new_tokens=max_new_tokens,
        lengths=None if lengths is None else lengths.to(model.device),
        temperature=temperature,
        top_k=top_k,
        generator=generator,
    )
