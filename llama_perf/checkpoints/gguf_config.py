"""A model's shape in the metadata of a GGUF file, under llama.cpp's names.

Knows the fields and which tensors there are, and reads no weights.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama_perf.checkpoints.architectures import (
    ARCHITECTURES,
    GGUF_ARCHITECTURES,
    check_allowed,
    every_nth,
)
from llama_perf.checkpoints.config import gguf_fields, model_config, read_config
from llama_perf.checkpoints.contradictions import Claim, check_claims
from llama_perf.checkpoints.cut import Shape
from llama_perf.checkpoints.gguf_reader import Fields
from llama_perf.errors import WeightsError
from llama_perf.llama.config import ModelConfig, RopeScaling
from llama_perf.llama.layers import inverse_frequencies
from llama_perf.words import shown

_TOKENS = "tokenizer.ggml.tokens"
KEPT = (
    *(f"{name}." for name in GGUF_ARCHITECTURES),
    *("general.architecture", "split.count", _TOKENS),
)
"""What the names of the fields that are read start with."""
ROPE_FACTORS = "rope_freqs.weight"
"""The tensor of what RoPE's frequencies are divided by."""
# Fields of a GGUF file that change the computation, and the values that do not.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "rope.scale_linear": (1.0,),
    "rope.scaling.type": ("none",),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (0.0,)),
    **dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale"), (1.0,)),
    **dict.fromkeys(("attention.scale", "attention.clamp_kqv"), (0.0,)),
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
}


def gguf_config(
    stored: Fields, shapes: Mapping[str, Shape], path: Path
) -> tuple[ModelConfig, str]:
    """The shape of the model, and the name of its architecture."""
    # Floats are stored as float32; this gives back the decimal number that was meant.
    with np.errstate(over="ignore"):
        fields: dict[str, Any] = {
            name: float(str(np.float32(value))) if isinstance(value, float) else value
            for name, (value, _) in stored.items()
        }
    source = str(path)
    known = {"general.architecture": GGUF_ARCHITECTURES}
    check_allowed(fields, known, source=source)
    name = str(fields.get("general.architecture", "llama"))
    kind, own = ARCHITECTURES[name], gguf_fields(name)
    allowed = {f"{name}.{field}": values for field, values in _ALLOWED.items()}
    if fields.get(own["sliding_window"]) == 0:
        del fields[own["sliding_window"]]
    if name != "llama":
        # It does not say which layers have it.
        allowed[f"{name}.attention.sliding_window"] = (0,)
    check_allowed(fields, allowed, source=source)
    if (parts := fields.get("split.count", 0)) not in (0, 1):
        raise WeightsError(
            f"{path}: split.count: {shown(parts)} is not allowed; merge the parts with"
            " llama-gguf-split --merge"
        )
    if (tokens := fields.get(_TOKENS)) is not None:
        if not isinstance(tokens, list):
            raise WeightsError(f"{path}: {_TOKENS}: allowed: a list of strings")
        claims = [Claim(f"the number of {_TOKENS}", len(tokens), len(tokens))]
        if (said := fields.get(own["vocab_size"])) is not None:
            claims.append(Claim(own["vocab_size"], said, said))
        check_claims(claims, source=source)
        fields[own["vocab_size"]] = len(tokens)
    parts = {
        "qkv_bias": "blk.0.attn_q.bias" in shapes,
        "output_bias": "blk.0.attn_output.bias" in shapes,
        "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
        **kind.parts,
    }
    if kind.nope_step:
        layers = fields.get(own["n_layers"])
        parts["nope_layers"] = every_nth(kind.nope_step, layers)
    config = read_config(
        model_config,
        fields,
        own,
        source=source,
        **parts,
        vocab_size=shapes.get("token_embd.weight", (None,))[0],
        # llama.cpp's rule: a file without an output layer shares the embedding.
        tied_embeddings="output.weight" not in shapes,
    )
    head_fields = (f"{name}.attention.value_length", f"{name}.rope.dimension_count")
    check_allowed(fields, dict.fromkeys(head_fields, (config.head_dim,)), source=source)
    return config, name


def rope_scaling(
    factors: Tensor, config: ModelConfig, path: Path
) -> RopeScaling | None:
    """The scaling whose division of every frequency is `factors` (head_dim / 2,)."""
    # The longest wavelength is stretched by the whole factor.
    fits = factors.shape == (config.head_dim // 2,)
    if fits and 1 <= (factor := float(factors.max())) < math.inf:
        scaling = RopeScaling(factor=factor)
        unscaled_freqs, scaled_freqs = (
            inverse_frequencies(variant, device=torch.device("cpu"))
            for variant in (config, replace(config, rope_scaling=scaling))
        )
        if torch.allclose(factors, unscaled_freqs / scaled_freqs, rtol=1e-3):
            return None if factor == 1 else scaling
    raise WeightsError(
        f"{path}: {ROPE_FACTORS}: these RoPE factors are not allowed; allowed: those"
        " of Llama 3.1 and 3.2 (low 1, high 4, original context 8192)"
    )
