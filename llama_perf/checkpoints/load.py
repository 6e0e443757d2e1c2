"""Checkpoints into models, layer by layer.

The modules start on the meta device, one layer's weights are read, moved, quantized,
and only then the next are read. The peak is the quantized model plus one layer. A
layer is read and quantized in a memory pool that is freed afterwards. Knows neither
rows nor engines.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from llama_perf.checkpoints.open import open_model
from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.devices.device import KINDS, check_device
from llama_perf.errors import SpecError
from llama_perf.llama.memory_segments import ScratchPool
from llama_perf.llama.transformer import Origin, Transformer, is_unquantized
from llama_perf.quantize.apply import Quantizer
from llama_perf.rows.spec import DTYPE_TOKENS


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
    allowed = f"allowed: {', '.join(sorted(KINDS))}"
    try:
        target = torch.device(device)
    except RuntimeError:
        raise SpecError("device", str(device), allowed) from None
    if target.type not in KINDS:
        raise SpecError("device", str(device), allowed)
    check_device(target.type)
    return target


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype of a field's value; raises SpecError."""
    if name not in DTYPE_TOKENS:
        raise SpecError("dtype", name, f"allowed: {', '.join(DTYPE_TOKENS)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def build_model(
    reader: WeightsReader,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantizer: Quantizer | None = None,
) -> Transformer:
    """Read, move and quantize one layer after the other."""
    config, saved = reader.config, reader.saved
    with torch.device("meta"):
        model = Transformer(config)
    model.origin = Origin(weights=reader.source) if saved is None else saved.origin
    _assign(model.tok_embeddings, {"weight": reader.embedding()}, dtype, device)
    packed = quantizer is not None or (saved is not None and saved.scheme is not None)
    scratch = ScratchPool(device if packed else torch.device("cpu"))
    for index, layer in enumerate(model.layers):
        with scratch.allocate():
            _assign(layer, reader.layer(index), dtype, device)
            if quantizer is not None:
                quantizer(layer, f"layers.{index}")
        # Layers are alike.
        scratch.move_out(layer, room_for=0 if index else len(model.layers))
    with scratch.allocate():
        final = reader.final()
        _assign(model.norm, {"weight": final.pop("norm.weight")}, dtype, device)
        if "output.weight" in final:
            _assign(model.output, {"weight": final.pop("output.weight")}, dtype, device)
        else:
            model.output.weight = model.tok_embeddings.weight
        if quantizer is not None:
            quantizer(model.output, "output")
    scratch.move_out(model.norm)
    if model.output.weight is not model.tok_embeddings.weight:
        scratch.move_out(model.output)
    return model.requires_grad_(False).eval()


def _assign(
    module: nn.Module,
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    moved = {name: _moved(weight, dtype, device) for name, weight in weights.items()}
    module.load_state_dict(moved, assign=True, strict=True)


def _moved(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A copy even where nothing changes: a tensor that stays on a mapped file would
    # be read from the disk while a row is timed.
    if is_unquantized(tensor):
        copy = tensor.device.type == "cpu"
        return tensor.to(device=device, dtype=dtype, copy=copy)
    # Of quantized ones `.to` heeds no `copy`.
    moved = (tensor.clone() if device.type == "cpu" else tensor).to(device, dtype)
    # With the tensor torchao was imported, quietly.
    from llama_perf.quantize.packed_tensor import PackedTensor

    # Another processor may have saved it in a layout that this one multiplies slowly.
    return moved.laid_out_for(device) if isinstance(moved, PackedTensor) else moved
