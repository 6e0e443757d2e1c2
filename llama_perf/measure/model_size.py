"""Bytes of a model's weights from its shape alone: built on the meta device.

Counted as `Transformer.weight_bytes` does: what a token reads, the embedding left out.
Knows no files and no row. What autoquant chooses depends on the device: here it
chooses the fewest bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from llama_perf.llama.config import ModelConfig
from llama_perf.llama.transformer import Transformer, tensor_bytes
from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows.schemes import AUTOQUANT, UNQUANTIZED, Scheme

_CPU = torch.device("cpu")
# torchao's tile packing for CUDA: N and K are padded to multiples of these.
_TILE_ROWS, _TILE_COLUMNS = 8, 1024

# Quantizes a model on the meta device in place.
_Apply = Callable[[Transformer], object]
# Bytes of a linear of N rows and K columns.
_LinearBytes = Callable[[int, int], int]


def native_model_bytes(
    config: ModelConfig, scheme: str | None, *, dtype: torch.dtype
) -> int:
    """Bytes of the weights in a native scheme, or unquantized.

    Raises SpecError for a scheme that does not fit the shape, NotRunnable for one that
    is not built.
    """
    return model_bytes(config, scheme, kernels="native", dtype=dtype, device="cpu")


def model_bytes(
    config: ModelConfig,
    scheme: str | None,
    *,
    kernels: str,
    dtype: torch.dtype,
    device: str,
) -> int:
    """Bytes of the weights as `kernels` keep them on `device`, "cpu" or "cuda".

    Of autoquant the fewest that it can choose. Raises SpecError and NotRunnable as the
    quantizer of a row does.
    """
    # A native weight is the same on every device: rows share what was counted.
    where = "cpu" if kernels == "native" else device
    return _model_bytes(config, scheme, kernels, dtype, where)


@cache
def _model_bytes(
    config: ModelConfig,
    scheme: str | None,
    kernels: str,
    dtype: torch.dtype,
    device: str,
) -> int:
    if scheme is None:
        return _of_all_layers(config, dtype, lambda _model: None)
    parsed = Scheme.parse(scheme)
    if kernels == "torchao" and (stored := _by_hand(parsed, dtype, device)) is not None:
        return _of_all_layers(config, dtype, lambda _model: None, linear_bytes=stored)
    schemes = None
    if scheme in AUTOQUANT:
        schemes = _fewest_bytes(config, AUTOQUANT[scheme], dtype)
    quantize = make_quantizer(
        scheme, kernels=kernels, device=_CPU, dtype=dtype, schemes=schemes
    )

    def apply(model: Transformer) -> None:
        for index, layer in enumerate(model.layers):
            quantize(layer, f"layers.{index}")
        quantize(model.output, "output")

    return _of_all_layers(config, dtype, apply)


def _of_all_layers(
    config: ModelConfig,
    dtype: torch.dtype,
    apply: _Apply,
    *,
    linear_bytes: _LinearBytes | None = None,
) -> int:
    """From a model of one layer, since all layers are alike.

    `linear_bytes` (N, K) stands in for what the linears of the model hold.
    """
    with torch.device("meta"):
        model = Transformer(replace(config, n_layers=1)).to(dtype)
    apply(model)

    def more(module: nn.Module) -> int:
        if linear_bytes is None:
            return 0
        linears = [each for each in module.modules() if isinstance(each, nn.Linear)]
        packed = sum(linear_bytes(*each.weight.shape) for each in linears)
        return packed - sum(tensor_bytes(each.weight) for each in linears)

    (layer,) = model.layers
    of_layer = sum(map(tensor_bytes, layer.parameters())) + more(layer)
    one = model.weight_bytes() + more(model)
    return one + (config.n_layers - 1) * of_layer


def _by_hand(
    scheme: Scheme, dtype: torch.dtype, device: str
) -> Callable[[int, int], int] | None:
    """Bytes of a linear (N, K) where torchao's packing needs the device itself."""
    if scheme.family == "int4wo":
        group_size = scheme.group_size
        assert group_size is not None, f"{scheme.name} has no group size"
        tiles = (_TILE_ROWS, _TILE_COLUMNS) if device == "cuda" else (1, 1)

        def int4(rows: int, columns: int) -> int:
            rows, columns = _multiple(rows, tiles[0]), _multiple(columns, tiles[1])
            # A scale and a zero for every group.
            groups = rows * (columns // group_size)
            return rows * columns // 2 + 2 * groups * dtype.itemsize

        return int4
    if scheme.family == "float8dq-tensor":
        return lambda rows, columns: rows * columns + 4
    if scheme.family == "float8dq-row":
        return lambda rows, columns: rows * columns + 4 * rows
    return None


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of


def _fewest_bytes(
    config: ModelConfig, candidates: tuple[str, ...], dtype: torch.dtype
) -> dict[tuple[int, int], str]:
    """The candidate that takes the fewest bytes, for each shape (N, K)."""
    with torch.device("meta"):
        model = Transformer(replace(config, n_layers=1)).to(dtype)
    shapes = {
        (each.out_features, each.in_features)
        for each in model.modules()
        if isinstance(each, nn.Linear)
    }
    return {
        shape: min(
            (name for name in candidates if _fits(name, shape[1])),
            key=lambda name: _linear_bytes(name, *shape, dtype),
        )
        for shape in shapes
    }


def _fits(candidate: str, columns: int) -> bool:
    group_size = (
        None if candidate == UNQUANTIZED else Scheme.parse(candidate).group_size
    )
    return group_size is None or columns % group_size == 0


def _linear_bytes(name: str, rows: int, columns: int, dtype: torch.dtype) -> int:
    linear = nn.Linear(columns, rows, bias=False, device="meta", dtype=dtype)
    root = nn.ModuleDict({"linear": linear}).requires_grad_(False)
    if name != UNQUANTIZED:
        make_quantizer(name, kernels="native", device=_CPU, dtype=dtype)(root, name)
    return tensor_bytes(next(root.parameters()))
