"""Weights that another kernel library packs and multiplies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from llama_perf.quantize.quantized_tensor import QuantizedTensor


class LibraryTensor(QuantizedTensor):
    """A weight of the library `library`, whose operator is its product.

    `product_dtype` is what the library computes in where it is not the activations'.
    """

    library: ClassVar[str]

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype that a product is rounded to on its way."""
        return self.activation_dtype


@dataclass(frozen=True)
class LibraryConfig(AOBaseConfig):  # type: ignore[misc]
    """Config for torchao's `quantize_` of a function that packs a weight (N, K)."""

    from_float: Callable[[Tensor], LibraryTensor]


@register_quantize_module_handler(LibraryConfig)
def quantize_module(
    module: nn.Module, config: LibraryConfig, *, parameter_name: str = "weight"
) -> nn.Module:
    """Quantize one parameter of `module` in place."""
    packed = config.from_float(getattr(module, parameter_name).detach())
    setattr(module, parameter_name, nn.Parameter(packed, requires_grad=False))
    return module
