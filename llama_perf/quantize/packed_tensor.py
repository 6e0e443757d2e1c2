"""The base class of the native schemes' weights, and the native configs.

A native weight is a torchao tensor over packed codes and scales (their layout is that
of `llama_perf.kernels.packing`). A linear with one calls the scheme's operator;
torchao does the rest (saving, moving, detaching). `dtype` is that of the activations
and of `dequantize()`; a change of it does not touch the stored tensors.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from llama_perf.errors import SpecError
from llama_perf.kernels import products
from llama_perf.kernels.weight import Packed
from llama_perf.llama.transformer import is_unquantized
from llama_perf.quantize.packed_share import Range, share
from llama_perf.quantize.quantized_tensor import QuantizedTensor
from llama_perf.quantize.registry import register
from llama_perf.rows.choices import DTYPE_TOKENS
from llama_perf.rows.schemes import AUTOQUANT, INT4_GROUP_SIZES, Scheme

_LARGEST = 2.0**126


class PackedTensor(QuantizedTensor):
    """Base of the packed weights, (rows, columns), of nn.Linear.

    A subclass names its `families`, which registers it for them, and its tensors in
    `tensor_data_names`, and gives `from_float` and `packed`. Where it has attributes
    of its own, they come first in its `tensor_attribute_names`.
    `column_multiple` is what K must be a multiple of, `cut_multiple` what it must be
    where a rank has some of the columns.
    """

    column_multiple: ClassVar = 1
    cut_multiple: ClassVar = 1
    families: ClassVar[Sequence[str]] = ()

    def __init_subclass__(cls, families: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.families = families
        torch.serialization.add_safe_globals([cls])
        register(*families, kernels="native")(lambda it, *_: NativeConfig(it, cls))

    @classmethod
    def from_float(
        cls, weight: Tensor, scheme: Scheme, cut: str | None = None
    ) -> "PackedTensor":
        """Quantize a checked weight (rows, columns), or a rank's share that is `cut`.

        A share is quantized to what the same `cut` of the whole quantized weight has.
        """
        raise NotImplementedError

    def packed(self) -> Packed:
        """The weight as the kernels take it."""
        raise NotImplementedError

    def share(
        self, rows: Sequence[Range], columns: Range | None = None
    ) -> "PackedTensor":
        """Some rows of this weight, and some of its columns: see `packed_share`."""
        whole = self.laid_out_for(self.device)
        part = share(whole.packed(), rows, columns)
        tensors = [getattr(part, name) for name in whole.tensor_data_names]
        *own, _, _, dtype = (getattr(whole, n) for n in whole.tensor_attribute_names)
        return type(whole)(*tensors, *own, part.rows, part.columns, dtype)

    @property
    def scheme_name(self) -> str:
        """The scheme that makes such a weight, but for the search of its scales."""
        return self.families[0]

    def laid_out_for(self, device: torch.device) -> "PackedTensor":
        del device
        return self

    def product(self, x: Tensor) -> Tensor:
        return products.product(x, self.packed())

    def dequantize(self) -> Tensor:
        return products.dequantized(self.packed()).to(self.activation_dtype)


@dataclass(frozen=True)
class NativeConfig(AOBaseConfig):  # type: ignore[misc]
    """Config of a native scheme for torchao's `quantize_`."""

    scheme: Scheme
    weight_class: type[PackedTensor]


@register_quantize_module_handler(NativeConfig)
def quantize_module(
    module: nn.Module, config: NativeConfig, *, parameter_name: str = "weight"
) -> nn.Module:
    """Quantize one parameter of `module` in place; raises SpecError."""
    scheme, weight = config.scheme, getattr(module, parameter_name)
    shape = tuple(weight.shape)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        # It looks rows up and multiplies nothing.
        kind = f"{type(module).__name__} {shape}"
        raise SpecError("quantization", scheme.name, f"{kind} is no linear layer")
    check_weight(weight, name=scheme.name)
    named, cut = {f"the weight {shape}": shape}, getattr(module, "cut", None)
    check_shapes(scheme, config, named, device=weight.device)
    packed = config.weight_class.from_float(weight, scheme, cut)
    packed = packed.laid_out_for(weight.device)
    setattr(module, parameter_name, nn.Parameter(packed, requires_grad=False))
    return module


# Each linear gets the config of the scheme chosen for it: see `make_quantizer`.
register(*AUTOQUANT, kernels="native")(lambda *_: AOBaseConfig())


def check_shapes(
    scheme: Scheme,
    config: AOBaseConfig,
    shapes: Mapping[str, Sequence[int]],
    *,
    device: torch.device,
    cut_by_columns: Collection[str] = (),
) -> None:
    """Raise SpecError unless every weight (N, K) of `shapes`, by name, fits.

    Where the group size does not, the error names those that divide every K. Of the
    names in `cut_by_columns` K are the columns of one of several ranks.
    """
    native = isinstance(config, NativeConfig)
    in_sixteens = not native and scheme.family == "int4wo" and device.type == "cpu"
    size, common = scheme.group_size or 1, math.gcd(*(k for _, k in shapes.values()))
    for name, (rows, columns) in shapes.items():
        is_cut = name in cut_by_columns
        where, multiple = f"{name} on a rank" if is_cut else name, 1
        if native:
            multiple = config.weight_class.column_multiple
            multiple = max(multiple, config.weight_class.cut_multiple * is_cut)
        if columns % size:
            is_int4 = scheme.family == "int4wo"
            sizes = INT4_GROUP_SIZES if is_int4 else range(1, columns + 1)
            fitting = [size for size in sizes if common % size == 0]
            problem = f"the group size {size} must divide K = {columns} of {where}; "
            words = ", ".join(map(str, fitting or sizes))
            problem += f"allowed: {words}" if fitting else f"none of {words} does"
        elif columns % multiple:
            problem = f"K = {columns} of {where} must be a multiple of {multiple}"
        elif in_sixteens and rows % 16:
            problem = f"torchao's packing on CPU takes rows in sixteens: N = {rows} of"
            problem += f" {where} must be a multiple of 16"
        else:
            continue
        raise SpecError("quantization", scheme.name, problem)


def check_weight(weight: Tensor, *, name: str, where: str = "the weight") -> None:
    """Raise SpecError unless `weight`, called `where`, is a matrix of finite floats.

    The largest magnitude allowed is a quarter of float32's, so that the range of a
    group and what is computed from it stay within float32.
    """
    shape, dtype = tuple(weight.shape), str(weight.dtype).removeprefix("torch.")
    problem = ""
    if not is_unquantized(weight):
        problem = f"is quantized already: {type(weight).__name__}"
    elif weight.ndim != 2 or dtype not in DTYPE_TOKENS:
        allowed = f"a matrix (N, K) of {', '.join(DTYPE_TOKENS)}"
        problem = f"is {dtype} {shape}; allowed: {allowed}"
    elif weight.numel() == 0:
        problem = f"is {shape}; N and K must be 1 or more"
    elif not weight.is_meta:
        # aminmax copies nothing; a NaN is both its minimum and its maximum.
        low, high = (value.item() for value in torch.aminmax(weight.detach()))
        if not math.isfinite(high - low):
            problem = f"{shape} has values that are not finite (NaN or infinite)"
        elif (peak := max(-low, high)) > _LARGEST:
            problem = f"{shape} has values of up to {peak:.2g}; allowed: {_LARGEST:.2g}"
    if problem:
        raise SpecError("quantization", name, f"{where} {problem}")
