"""A small model of any scheme, and a fused engine over it compared with the modules."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llama_perf import quantize_model
from llama_perf.checkpoints.load import build_model
from llama_perf.llama.engine import Engine
from llama_perf.llama.transformer import Transformer
from tests.correctness.support.engines import distance, engine
from tests.correctness.support.weights_samples import TINY, tiny_weights

# Rows that fill no block of sixteen, columns that fill no step; as few programs as
# have all of a layer's parts, since the interpreter takes 50 ms for each.
SMALL = replace(TINY, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=20, head_dim=48)
# Of rounding where it is stored, by dtype: a few times its unit.
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# int8dq rounds each activation, which a last bit can turn over.
TURNED = 2e-2
Pair = tuple[Engine, Engine]
# A code turns over where a last bit does: by 1 of 127 of a head's largest value, or
# in fp8 by an eighth of its own. Six in a hundred move a vector by so much.
TURNED_CODES = {"int8": 0.06**0.5 / 127, "fp8": 0.06**0.5 / 8}


def small_model(
    scheme: str | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    **changed: Any,
) -> Transformer:
    weights = tiny_weights(replace(SMALL, **changed))
    model = build_model(weights, dtype=dtype, device=device)
    # Norms that change something, and logits that differ.
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "norm" in name:
            drawn = torch.rand(weight.shape, generator=generator) + 0.5
            weight.data.copy_(drawn)
    return model if scheme is None else quantize_model(model, scheme, kernels="native")


def both(model: Transformer, *, changed: str = "fused", **fields: Any) -> Pair:
    """The modules' engine and the fused one, or other two, over the same weights."""
    options = {"cache_size": 24, **fields}
    return engine(model, **options), engine(model, **options, **{changed: True})


def check(
    pair: Pair, prompt: Tensor, limit: float, lengths: Tensor | None = None
) -> None:
    """A prompt, then a step, by both; what the caches hold as well."""
    (modules, fused), length = pair, prompt.shape[1]
    with torch.no_grad():
        expected, actual = (one.prefill(prompt, lengths) for one in pair)
        assert distance(actual, expected) < limit
        token = expected.argmax(-1, keepdim=True)
        at = torch.tensor([length]) if lengths is None else lengths[:, None]
        step = token, at.to(prompt.device)
        assert distance(fused.decode(*step), modules.decode(*step)) < limit
    for own, other in zip(modules.caches, fused.caches, strict=True):
        both_caches = zip(own.dequantized(), other.dequantized(), strict=True)
        for expected, actual in both_caches:
            assert distance(actual, expected) < limit
            # Nothing beyond the positions that were written.
            assert not actual[:, :, length + 1 :].any()


def limit_of(scheme: str | None, dtype: torch.dtype = torch.float32) -> float:
    return max(CLOSE[dtype], TURNED) if scheme == "int8dq" else CLOSE[dtype]
