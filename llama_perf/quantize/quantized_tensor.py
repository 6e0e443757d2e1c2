"""A quantized weight of a linear as one tensor: its parts, and its product.

A torchao tensor: torchao does saving, moving and detaching. A linear with one calls its
`product`. Knows no scheme and no kernel.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchao.utils import TorchAOBaseTensor

from llama_perf.errors import SpecError

aten = torch.ops.aten


class QuantizedTensor(TorchAOBaseTensor):  # type: ignore[misc]
    """Base of the quantized weights, (rows, columns), of nn.Linear.

    A subclass names its tensors in `tensor_data_names`, and gives `product` and
    `dequantize`. Where it has attributes of its own, they come first in its
    `tensor_attribute_names`. `dtype` is that of the activations and of `dequantize()`;
    a change of it does not touch the stored tensors.
    """

    tensor_data_names: ClassVar = ["codes", "scale"]
    tensor_attribute_names: ClassVar = ["rows", "columns", "activation_dtype"]
    codes: Tensor
    scale: Tensor
    rows: int
    columns: int
    activation_dtype: torch.dtype

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # After torchao's, on each class: its own `.to` would drop the dtype.
        cls.implements(aten._to_copy.default)(_moved)
        cls.implements(aten.linear.default)(_linear)
        cls.implements_torch_function(F.linear)(_linear)

    @staticmethod
    def __new__(cls, *values: Any) -> "QuantizedTensor":
        """The tensors of `tensor_data_names`, then the attributes, in their order."""
        names = (*cls.tensor_data_names, *cls.tensor_attribute_names)
        assert len(names) == len(values), f"{cls.__name__} takes {names}"
        *_, rows, columns, dtype = values
        self: QuantizedTensor = torch.Tensor._make_wrapper_subclass(
            cls, (rows, columns), dtype=dtype, device=values[0].device
        )
        for name, value in zip(names, values, strict=True):
            setattr(self, name, value)
        return self

    def __init__(self, *values: Any) -> None:
        # `__new__` sets everything; torch.Tensor's own takes no such arguments.
        pass

    def product(self, x: Tensor) -> Tensor:
        """`x` (T, columns) times the transposed weight: (T, rows) in x's dtype."""
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        """The weight as an ordinary tensor of this one's dtype, (rows, columns)."""
        raise NotImplementedError

    def laid_out_for(self, device: torch.device) -> "QuantizedTensor":
        """The same weight, not moved, in the layout that `device` multiplies.

        Most schemes have one layout for all devices.
        """
        del device
        return self

    def _stable_hash_for_caching(self) -> str:
        names, attributes = self.__tensor_flatten__()
        tensors = [getattr(self, name) for name in names]
        shapes = [(tuple(part.shape), str(part.dtype)) for part in tensors]
        return f"{type(self).__name__} {shapes} {attributes} {self.device}"


def _linear(_func: Any, _types: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight = args[0], args[1]
    bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
    if x.ndim == 0 or x.shape[-1] != weight.columns:
        allowed = f"the last dimension must be K = {weight.columns}"
        raise SpecError("x", tuple(x.shape), allowed)
    if not x.is_floating_point():
        raise SpecError("x", str(x.dtype), "allowed: floating point")
    out: Tensor = weight.product(x.reshape(-1, weight.columns))
    out = out.view(*x.shape[:-1], weight.rows)
    return out if bias is None else out.add(bias)


def _moved(_func: Any, _types: Any, args: Any, kwargs: Any) -> QuantizedTensor:
    self: QuantizedTensor = args[0]
    target = self._get_to_kwargs(*args[1:], **(kwargs or {}))
    device = target["device"]
    self = self.laid_out_for(torch.device(device))
    tensors = [
        getattr(self, name).to(device, non_blocking=target["non_blocking"])
        for name in self.tensor_data_names
    ]
    attributes = [getattr(self, name) for name in self.tensor_attribute_names[:-1]]
    return type(self)(*tensors, *attributes, target["dtype"])
