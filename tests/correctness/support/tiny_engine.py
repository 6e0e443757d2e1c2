"""Engines over one tiny model on the CPU, and what they compute."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from llama_perf.checkpoints.load import build_model
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import GREEDY, EngineOptions
from llama_perf.llama.transformer import Transformer
from tests.correctness.support.weights_samples import TINY, tiny_weights

SIZE = 258
"""Positions up to the cache's last one: lengths 1, 2, 255, 256, 257 and 258."""


def new_model() -> Transformer:
    """One to be quantized."""
    return build_model(tiny_weights(), dtype=torch.float32, device=torch.device("cpu"))


@cache
def model() -> Transformer:
    """One for all tests, which leave it as it is."""
    return new_model()


def engine(of: Transformer | None = None, **options: Any) -> Engine:
    return Engine(of or model(), EngineOptions(**{"cache_size": SIZE, **options}))


def tokens(batch: int = 1, length: int = SIZE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TINY.vocab_size, (batch, length), generator=generator)


def greedy(one: Engine, prompt: Tensor, count: int, **options: Any) -> Tensor:
    return one.generate(prompt, max_new_tokens=count, sampling=GREEDY, **options)


def logits_after(one: Engine, ids: Tensor, prompt: int, steps: int) -> Tensor:
    """Logits after `prompt` tokens of `ids` and after each of `steps` more."""
    with torch.no_grad():
        logits = [one.prefill(ids[:, :prompt])]
        for position in range(prompt, prompt + steps):
            token = ids[:, position : position + 1]
            at = torch.tensor([position], device=ids.device)
            logits.append(one.decode(token, at))
    return torch.stack(logits, dim=1)
