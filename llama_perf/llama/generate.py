"""A generation in one call: `llama_perf.generate`."""

from dataclasses import replace

from torch import Tensor

from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.prompt_checks import refused
from llama_perf.llama.sampling import Sampling
from llama_perf.llama.transformer import Transformer


def generate(
    model: Transformer,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    lengths: Tensor | None = None,
    sampling: Sampling = Sampling(),
    options: EngineOptions = EngineOptions(),
) -> Tensor:
    """Generate from `prompt`, int64 (batch, length); (batch, length + new) int64.

    With `lengths`, int64 (batch,), the prompt of sequence i is its first lengths[i]
    tokens. The new tokens start at column `length` in each sequence. `options` say how
    the model runs; the batch is the prompt's. Raises PromptError for a prompt that does
    not fit, SpecError for another argument that is not allowed.
    """
    if prompt.ndim != 2:
        shape = f"shape {tuple(prompt.shape)}"
        raise refused("prompt", shape, "allowed: (batch, length)")
    batch, length = prompt.shape
    cache_size = options.cache_size or max(length + max_new_tokens, 1)
    options = replace(options, batch_size=max(batch, 1), cache_size=cache_size)
    engine = Engine(model, options)
    engine.check_prompt(prompt, max_new_tokens=max_new_tokens, lengths=lengths)
    return engine.generate(
        prompt.to(model.device),
        max_new_tokens=max_new_tokens,
        lengths=None if lengths is None else lengths.to(model.device),
        sampling=sampling,
    )
