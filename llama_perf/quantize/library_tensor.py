"""Weights that another kernel library packs and multiplies, and its quiet import.

A library is an optional extra: it is imported when a row first asks for it.
"""

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from llama_perf.devices.device import package_version
from llama_perf.errors import NotRunnable
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


@cache
def import_library(name: str) -> ModuleType:
    """Import a kernel library without what it logs; raises NotRunnable.

    On its way nothing is fetched from a hub: with the package `kernels` installed,
    bitsandbytes would look there for faster kernels.
    """
    if package_version(name) is None:
        raise NotRunnable(f"{name} is not installed (pip install --no-deps {name})")
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with patch.dict(os.environ, HF_HUB_OFFLINE="1"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    except Exception as error:  # a library may fail in any way without its device
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise NotRunnable(f"{name} cannot be imported: {reason}") from None
    finally:
        logging.disable(before)
