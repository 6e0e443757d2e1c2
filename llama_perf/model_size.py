"""Bytes of a model's weights from its shape alone: built on the meta device.

Counted as `Transformer.weight_bytes` does: what a token reads, the embedding left out.
Knows no files and no row; autoquant's sizes depend on what it chooses.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from llama_perf.model.config import ModelConfig
from llama_perf.model.transformer import Transformer
from llama_perf.quantize.quiet import import_torchao
from llama_perf.quantize.registry import config_for
from llama_perf.scheme import Scheme

REFERENCE = "reference"
"""The layout whose sizes are the published table's, where a scheme has two."""


def native_model_bytes(
    config: ModelConfig,
    scheme: str | None,
    *,
    dtype: torch.dtype,
    reference_layout: bool = False,
) -> int:
    """Bytes of the weights in a native scheme, or unquantized.

    From models of one layer and of two, since all layers are alike. Raises SpecError
    for a scheme that does not fit the shape, NotRunnable for one that is not built.
    """
    quantization = None
    if scheme is not None:
        quantization = _config(scheme, dtype, reference_layout=reference_layout)
    one, two = (
        _bytes(replace(config, n_layers=layers), quantization, dtype)
        for layers in (1, 2)
    )
    return one + (config.n_layers - 1) * (two - one)


def has_reference_layout(scheme: str) -> bool:
    """Whether a native scheme has a second layout, that of the published table."""
    config = _config(scheme, torch.bfloat16, reference_layout=False)
    return any(field.name == "layout" for field in fields(config))


def _config(scheme: str, dtype: torch.dtype, *, reference_layout: bool) -> Any:
    import_torchao()
    config: Any = config_for(
        Scheme.parse(scheme), kernels="native", device=torch.device("cpu"), dtype=dtype
    )
    if reference_layout and any(field.name == "layout" for field in fields(config)):
        return replace(config, layout=REFERENCE)
    return config


def _bytes(config: ModelConfig, quantization: Any, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    if quantization is not None:
        from torchao.quantization import quantize_

        quantize_(model, quantization)
    return model.weight_bytes()
