"""A whole model quantized in one call: `llama_perf.quantize_model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from llama_perf.errors import SpecError
from llama_perf.llama.transformer import (
    Origin,
    Transformer,
    check_transformer,
    is_unquantized,
)
from llama_perf.quantize.apply import Quantizer, make_quantizer
from llama_perf.quantize.autoquant.choose import choose
from llama_perf.results.measurement import LinearChoice
from llama_perf.rows.schemes import AUTOQUANT, Scheme
from llama_perf.rows.spec import KERNELS, RowSpec


def quantize_model(
    model: Transformer,
    scheme: str,
    *,
    kernels: str | None = None,
    compile: bool = False,
) -> Transformer:
    """Quantize every linear layer of `model` in place, and return it.

    `kernels` is "native" or "torchao"; by default native where this scheme
    is built so, else torchao. autoquant chooses for a generation of the reference's
    lengths, with `compile` for one whose decoding is compiled. Raises SpecError for
    an unknown scheme or one that does not fit a layer, NotRunnable for one that is
    not built or not for this device.
    """
    check_transformer(model)
    chosen = kernels if kernels is not None else preferred_kernels(scheme)
    if chosen not in KERNELS:
        raise SpecError("kernels", chosen, f"allowed: {', '.join(KERNELS)}")
    if not all(is_unquantized(parameter) for parameter in model.parameters()):
        raise quantized_already(scheme, model.origin)
    device, dtype = model.device, model.dtype
    quantizer = make_quantizer(scheme, kernels=chosen, device=device, dtype=dtype)
    if scheme in AUTOQUANT:
        row = RowSpec(
            model="model",
            quantization=scheme,
            dtype=str(dtype).removeprefix("torch."),
            device=device.type,
            compile=compile,
        )
        choices = choose(row, model.config)
        quantizer = chosen_quantizer(row, choices, device=device, dtype=dtype)
    quantizer(model, "model")
    record_scheme(model, scheme=scheme, kernels=chosen)
    return model


def preferred_kernels(scheme: str) -> str:
    """The kernels a scheme runs on where none are asked for."""
    return Scheme.parse(scheme).kernels[0]


def chosen_quantizer(
    row: RowSpec,
    choices: Sequence[LinearChoice],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Quantizer:
    """The quantizer of an autoquant row, once it is chosen."""
    assert row.quantization is not None, f"{row.id} has no scheme"
    return make_quantizer(
        row.quantization,
        kernels=row.kernels,
        device=device,
        dtype=dtype,
        schemes={
            (choice.out_features, choice.in_features): choice.chosen
            for choice in choices
        },
    )


def quantized_already(scheme: str, origin: Origin | None) -> SpecError:
    """The error of asking for `scheme` where the weights have one."""
    summary = f" ({origin.summary})" if origin is not None and origin.scheme else ""
    return SpecError(
        "quantization", scheme, f"this model is quantized already{summary}"
    )


def record_scheme(model: Transformer, *, scheme: str, kernels: str) -> None:
    """Have the model's origin say what it was quantized to."""
    if model.origin is not None:
        model.origin = replace(model.origin, scheme=scheme, kernels=kernels)
