"""A model for whoever needs no row: read from a checkpoint, made up, or quantized."""

from __future__ import annotations

from pathlib import Path

import torch

from llama_perf.checkpoints.load import build_model
from llama_perf.measure.prepare import (
    chosen_quantizer,
    parse_dtype,
    quantized_already,
    record_scheme,
)
from llama_perf.devices.device import check_device
from llama_perf.errors import SpecError
from llama_perf.llama.transformer import Transformer, check_transformer, is_plain
from llama_perf.quantize.apply import make_quantizer
from llama_perf.quantize.autoquant.choose import choose
from llama_perf.quantize.registry import built_kernels
from llama_perf.rows.schemes import AUTOQUANT, Scheme
from llama_perf.rows.spec import KERNELS, RowSpec
from llama_perf.checkpoints.open_model import open_model


def load_model(
    path_or_preset: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
) -> Transformer:
    """A model from a checkpoint, from a model's name, or synthetic from a preset.

    A checkpoint is a folder, a `model.pth` or a `.gguf`. Raises WeightsError for one
    that is missing or damaged, SpecError for an unknown name, dtype or device,
    NotRunnable where the device is not here.
    """
    wanted = parse_dtype(str(dtype).removeprefix("torch."))
    target = parse_device(device)
    reader, _ = open_model(
        str(path_or_preset), checkpoints=None, dtype=wanted, device=target
    )
    return build_model(reader, dtype=wanted, device=target)


def parse_device(device: str | torch.device) -> torch.device:
    """The torch device of a user's `device`; raises SpecError or NotRunnable."""
    try:
        target = torch.device(device)
    except RuntimeError:
        raise SpecError("device", str(device), "allowed: cpu, cuda") from None
    if target.type not in {"cpu", "cuda"}:
        raise SpecError("device", str(device), "allowed: cpu, cuda")
    check_device(target.type)
    return target


def quantize_model(
    model: Transformer,
    scheme: str,
    *,
    kernels: str | None = None,
    compile: bool = False,
) -> Transformer:
    """Quantize every linear layer of `model` in place, and return it.

    `kernels` is "native" or "torchao"; where not given, native where this scheme is
    built so, else torchao. autoquant chooses for a generation of the reference's
    lengths, with `compile` for one whose decoding is compiled. Raises SpecError for
    an unknown scheme or one that does not fit a layer, NotRunnable for one that is
    not built or not for this device.
    """
    check_transformer(model)
    chosen = kernels if kernels is not None else preferred_kernels(scheme)
    if chosen not in KERNELS:
        raise SpecError("kernels", chosen, f"allowed: {', '.join(KERNELS)}")
    if not all(is_plain(parameter) for parameter in model.parameters()):
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
    built = built_kernels(Scheme.parse(scheme))
    return built[0] if built else KERNELS[0]
