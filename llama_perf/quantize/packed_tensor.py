"""Base classes of the native schemes: their weights and their configs.

A native weight is a torchao tensor over packed codes and scales (their layout is that
of `llama_perf.kernels.packing`). A linear with one calls the scheme's operator;
torchao does the rest (saving, moving, detaching). `dtype` is that of the activations
and of `dequantize()`; a change of it does not touch the stored tensors.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler
from torchao.utils import TorchAOBaseTensor

from llama_perf.errors import SpecError
from llama_perf.kernels.weight import Packed
from llama_perf.llama.transformer import is_unquantized
from llama_perf.quantize.registry import register
from llama_perf.rows.schemes import Scheme
from llama_perf.rows.spec import DTYPE_TOKENS

aten = torch.ops.aten

_LARGEST = 2.0**126


class PackedTensor(TorchAOBaseTensor):  # type: ignore[misc]
    """Base of the packed weights, (rows, columns), of nn.Linear.

    A subclass names its tensors in `tensor_data_names` and gives `matmul` and
    `dequantized`. Where it has attributes of its own, they come first in its
    `tensor_attribute_names`, before the three of this class.
    """

    tensor_data_names: ClassVar[list[str]]
    tensor_attribute_names: ClassVar[list[str]] = [
        "rows",
        "columns",
        "activation_dtype",
    ]
    rows: int
    columns: int
    activation_dtype: torch.dtype

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # After torchao's, on each class: its own `.to` would drop the dtype.
        cls.implements(aten._to_copy.default)(_moved)
        cls.implements(aten.linear.default)(_linear)
        cls.implements_torch_function(F.linear)(_linear)
        torch.serialization.add_safe_globals([cls])

    @staticmethod
    def __new__(cls, *values: Any) -> PackedTensor:
        """The tensors of `tensor_data_names`, then the attributes, in their order."""
        names = (*cls.tensor_data_names, *cls.tensor_attribute_names)
        assert len(names) == len(values), f"{cls.__name__} takes {names}"
        first: Tensor = values[0]
        *_, rows, columns, dtype = values
        self: PackedTensor = torch.Tensor._make_wrapper_subclass(
            cls, (rows, columns), dtype=dtype, device=first.device, requires_grad=False
        )
        for name, value in zip(names, values, strict=True):
            setattr(self, name, value)
        return self

    def __init__(self, *values: Any) -> None:
        # `__new__` sets everything; torch.Tensor's own takes no such arguments.
        pass

    def matmul(self, x: Tensor) -> Tensor:
        """`x` (M, columns) times the transposed weight, (M, rows), in x's dtype."""
        raise NotImplementedError

    def packed(self) -> Packed | None:
        """The weight as the fused kernels take it; None where they do not."""
        return None

    def dequantized(self) -> Tensor:
        """The weight in float32, (rows, columns)."""
        raise NotImplementedError

    def laid_out_for(self, device: torch.device) -> PackedTensor:
        """The same weight, not moved, in the layout that `device` multiplies.

        Most schemes have one layout for all devices.
        """
        del device
        return self

    def dequantize(self) -> Tensor:
        """The weight as an ordinary tensor of this one's dtype, (rows, columns)."""
        return self.dequantized().to(self.activation_dtype)

    def _stable_hash_for_caching(self) -> str:
        tensors = [getattr(self, name) for name in self.tensor_data_names]
        shapes = [(tuple(part.shape), str(part.dtype)) for part in tensors]
        attributes = [getattr(self, name) for name in self.tensor_attribute_names]
        return f"{type(self).__name__} {shapes} {attributes} {self.device}"


def _linear(_func: Any, _types: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight = args[0], args[1]
    bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
    if x.ndim == 0 or x.shape[-1] != weight.columns:
        raise SpecError(
            "x", tuple(x.shape), f"the last dimension must be K = {weight.columns}"
        )
    if not x.is_floating_point():
        raise SpecError("x", str(x.dtype), "allowed: floating point")
    out: Tensor = weight.matmul(x.reshape(-1, weight.columns))
    out = out.view(*x.shape[:-1], weight.rows)
    return out if bias is None else out.add(bias)


def _moved(_func: Any, _types: Any, args: Any, kwargs: Any) -> PackedTensor:
    self: PackedTensor = args[0]
    target = self._get_to_kwargs(*args[1:], **(kwargs or {}))
    self = self.laid_out_for(torch.device(target["device"]))
    tensors = [
        getattr(self, name).to(target["device"], non_blocking=target["non_blocking"])
        for name in self.tensor_data_names
    ]
    attributes = [getattr(self, name) for name in self.tensor_attribute_names]
    return type(self)(*tensors, *attributes[:-1], target["dtype"])


class NativeConfig(AOBaseConfig):  # type: ignore[misc]
    """Base of the native schemes' configs for torchao's `quantize_`.

    A subclass names its `families`, which registers it for them.
    """

    @property
    def scheme(self) -> str:
        """The name of the scheme, for messages."""
        raise NotImplementedError

    def pack(self, weight: Tensor) -> PackedTensor:
        """Quantize a checked weight (rows, columns)."""
        raise NotImplementedError

    def check_columns(self, columns: int, *, where: str = "the weight") -> None:
        """Raise SpecError where K of the weight called `where` does not fit."""

    @classmethod
    def build(
        cls, scheme: Scheme, _device: torch.device, _dtype: torch.dtype
    ) -> NativeConfig:
        """The config of a parsed scheme: a builder, see `registry`."""
        del scheme
        return cls()

    def __init_subclass__(cls, *, families: tuple[str, ...] = ()) -> None:
        super().__init_subclass__()
        register_quantize_module_handler(cls)(_quantize_module)
        for family in families:
            register(family, kernels="native")(cls.build)


def _quantize_module(
    module: nn.Module, config: NativeConfig, *, parameter_name: str = "weight"
) -> nn.Module:
    """Quantize one parameter of `module` in place; raises SpecError."""
    weight = getattr(module, parameter_name)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        # It looks rows up and multiplies nothing.
        raise SpecError(
            "quantization",
            config.scheme,
            f"{type(module).__name__} {tuple(weight.shape)} is no linear layer",
        )
    check_weight(weight, name=config.scheme)
    config.check_columns(weight.shape[1], where=f"the weight {tuple(weight.shape)}")
    packed = nn.Parameter(config.pack(weight), requires_grad=False)
    setattr(module, parameter_name, packed)
    return module


def check_weight(weight: Tensor, *, name: str, where: str = "the weight") -> None:
    """Raise SpecError unless `weight`, called `where`, is a matrix of finite floats.

    The largest magnitude allowed is a quarter of float32's, so that the range of a
    group and what is computed from it stay within float32.
    """
    shape = tuple(weight.shape)
    dtype = str(weight.dtype).removeprefix("torch.")
    if not is_unquantized(weight):
        kind = type(weight).__name__
        raise SpecError("quantization", name, f"{where} is quantized already: {kind}")
    if weight.ndim != 2 or dtype not in DTYPE_TOKENS:
        raise SpecError(
            "quantization",
            name,
            f"{where} is {dtype} {shape}; allowed: a matrix (N, K) of"
            f" {', '.join(DTYPE_TOKENS)}",
        )
    if weight.numel() == 0:
        raise SpecError(
            "quantization", name, f"{where} is {shape}; N and K must be 1 or more"
        )
    if weight.is_meta:
        return
    # aminmax copies nothing; a NaN is both its minimum and its maximum.
    low, high = (value.item() for value in torch.aminmax(weight.detach()))
    peak = max(abs(low), abs(high))
    if not math.isfinite(low) or not math.isfinite(high):
        raise SpecError(
            "quantization",
            name,
            f"{where} {shape} has values that are not finite (NaN or infinite)",
        )
    if peak > _LARGEST:
        raise SpecError(
            "quantization",
            name,
            f"{where} {shape} has values of up to {peak:.2g}; allowed: {_LARGEST:.2g}",
        )
