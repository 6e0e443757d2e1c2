"""What the weights of the native schemes have in common.

A native weight is a torchao tensor over packed codes and scales (their layout is that
of `llama_perf.kernels.packing`). A linear with one goes to the scheme's operator;
everything else (saving, moving, detaching) is torchao's. `dtype` is that of the
activations and of `dequantize()`; changing it touches none of the stored tensors.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.utils import TorchAOBaseTensor

from llama_perf.errors import SpecError
from llama_perf.kernels.weight import Packed
from llama_perf.llama.transformer import is_unquantized
from llama_perf.rows.spec import DTYPE_TOKENS

aten = torch.ops.aten

_LARGEST = 2.0**126


class NativeTensor(TorchAOBaseTensor):  # type: ignore[misc]
    """Base of the packed weights, (rows, columns), of nn.Linear.

    A subclass names its tensors in `tensor_data_names`, ends its
    `tensor_attribute_names` with "rows", "columns" and "activation_dtype", and gives
    `matmul` and `dequantized`.
    """

    tensor_data_names: ClassVar[list[str]]
    tensor_attribute_names: ClassVar[list[str]]
    rows: int
    columns: int
    activation_dtype: torch.dtype

    @staticmethod
    def __new__(cls, *values: Any) -> NativeTensor:
        """The tensors of `tensor_data_names`, then the attributes, in their order."""
        names = (*cls.tensor_data_names, *cls.tensor_attribute_names)
        assert len(names) == len(values), f"{cls.__name__} takes {names}"
        first: Tensor = values[0]
        *_, rows, columns, dtype = values
        self: NativeTensor = torch.Tensor._make_wrapper_subclass(
            cls, (rows, columns), dtype=dtype, device=first.device, requires_grad=False
        )
        for name, value in zip(names, values, strict=True):
            setattr(self, name, value)
        return self

    def __init__(self, *values: Any) -> None:
        # Everything is set in __new__; torch.Tensor's own takes no such arguments.
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

    def laid_out_for(self, device: torch.device) -> NativeTensor:
        """The same weight, still where it is, in the layout that `device` multiplies.

        Most schemes have one layout for all devices.
        """
        del device
        return self

    def dequantize(self) -> Tensor:
        """The weight as a plain tensor of this one's dtype, (rows, columns)."""
        return self.dequantized().to(self.activation_dtype)

    def _stable_hash_for_caching(self) -> str:
        stored = [getattr(self, name) for name in self.tensor_data_names]
        shapes = [(tuple(part.shape), str(part.dtype)) for part in stored]
        others = [getattr(self, name) for name in self.tensor_attribute_names]
        return f"{type(self).__name__} {shapes} {others} {self.device}"


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


def _moved(_func: Any, _types: Any, args: Any, kwargs: Any) -> NativeTensor:
    self: NativeTensor = args[0]
    wanted = self._get_to_kwargs(*args[1:], **(kwargs or {}))
    self = self.laid_out_for(torch.device(wanted["device"]))
    stored = [
        getattr(self, name).to(wanted["device"], non_blocking=wanted["non_blocking"])
        for name in self.tensor_data_names
    ]
    others = [getattr(self, name) for name in self.tensor_attribute_names]
    return type(self)(*stored, *others[:-1], wanted["dtype"])


def native(cls: type[NativeTensor]) -> type[NativeTensor]:
    """Class decorator: give `cls` its linear and let `torch.load` read it."""
    # On each class: torchao would put its own `.to`, which drops the dtype, over ours.
    cls.implements(aten._to_copy.default)(_moved)
    cls.implements(aten.linear.default)(_linear)
    cls.implements_torch_function(F.linear)(_linear)
    torch.serialization.add_safe_globals([cls])
    return cls


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
    # Without a copy of the weight; a NaN is both the least and the largest.
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


def replace_weight(
    module: nn.Module, parameter_name: str, weight: NativeTensor
) -> nn.Module:
    """Set `weight` as the module's parameter, and return the module.

    Raises SpecError for an embedding, which looks rows up and multiplies nothing.
    """
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        raise SpecError(
            "quantization",
            type(weight).__name__,
            f"{type(module).__name__} {tuple(weight.shape)} is no linear layer",
        )
    setattr(module, parameter_name, nn.Parameter(weight, requires_grad=False))
    return module


def least_normal(scale: Tensor) -> Tensor:
    """`scale` with 0 and subnormal values raised to the least normal one.

    A row of zeros gets codes of zero; one of subnormal values rounds to zero.
    """
    return scale.clamp(min=torch.finfo(torch.float32).tiny)
