"""NF4: 4-bit codes of sixteen levels, with a scale for each group of 32 weights.

    w[n, k] = scale[n, k // 32] * LEVELS[code[n, k]]

The levels are quantiles of a normal distribution: Dettmers et al., "QLoRA" (2023).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler
from torchao.utils import TorchAOBaseTensor

GROUP = 32
BYTES_PER_WEIGHT = 0.5 + 2 / GROUP
"""Half a byte for the code, a bfloat16 for each group."""
LEVELS = (
    *(-1.0, -0.69619280, -0.52507305, -0.39491749),
    *(-0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.07958030, 0.16093020, 0.24611230, 0.33791524),
    *(0.44070983, 0.56261700, 0.72295684, 1.0),
)
FEW = 8
"""Tokens that the kernel takes; of more the weight is unpacked."""

aten = torch.ops.aten


class NF4Tensor(TorchAOBaseTensor):  # type: ignore[misc]
    """A weight (N, K) of nn.Linear.

    `codes` are uint8 (N, K / 2), the even column in the low half of a byte. `scale` is
    bfloat16 (N, K / 32). `levels`, float32 (16,), are kept with them on their device.
    """

    tensor_data_names = ["codes", "scale", "levels"]  # noqa: RUF012
    tensor_attribute_names = ["activation_dtype"]  # noqa: RUF012
    codes: Tensor
    scale: Tensor
    levels: Tensor
    activation_dtype: torch.dtype

    @staticmethod
    def __new__(
        cls, codes: Tensor, scale: Tensor, levels: Tensor, activation_dtype: torch.dtype
    ) -> "NF4Tensor":
        """The tensors and the dtype of `dequantize`."""
        shape = (codes.shape[0], 2 * codes.shape[1])
        self: NF4Tensor = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=activation_dtype, device=codes.device
        )
        self.codes, self.scale, self.levels = codes, scale, levels
        self.activation_dtype = activation_dtype
        return self

    def __init__(self, *_: Any) -> None:
        pass

    @classmethod
    def from_float(cls, weight: Tensor) -> "NF4Tensor":
        """Quantize floats (N, K); raises ValueError unless 32 divides K."""
        if weight.shape[1] % GROUP:
            raise ValueError(f"nf4: {GROUP} must divide K = {weight.shape[1]}")
        levels = torch.tensor(LEVELS, device=weight.device)
        groups = weight.detach().float().unflatten(1, (-1, GROUP))
        scale = groups.abs().amax(-1).to(torch.bfloat16)
        # A group of zeros has any scale.
        unit = groups / scale.float().clamp(min=1e-30)[..., None]
        codes = torch.bucketize(unit, (levels[:-1] + levels[1:]) / 2)
        low, high = codes.flatten(1).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
        return cls(low | (high << 4), scale, levels, weight.dtype)

    def dequantize(self) -> Tensor:
        """The weight as floats, by which llama-perf checks the row's values."""
        # Two values of each byte at once.
        low, high = self.levels.repeat(16), self.levels.repeat_interleave(16)
        pairs = F.embedding(self.codes.int(), torch.stack((low, high), dim=1))
        groups = pairs.view(len(pairs), -1, GROUP) * self.scale.float()[..., None]
        return groups.flatten(1).to(self.activation_dtype)

    def _stable_hash_for_caching(self) -> str:
        return f"NF4Tensor {tuple(self.codes.shape)} {self.activation_dtype}"


def product(
    x: Tensor, weights: Sequence[Any], *, norm: Any = None, residual: Any = None
) -> Tensor:
    """A `llama_perf.FusedProduct`, and the product of a linear.

    On a GPU one Triton kernel does all of it, elsewhere torch. `torch.compile` then
    makes one loop of a product with one token, which stores no unpacked weight.
    """
    if len(x) <= FEW and (x.is_cuda or "TRITON_INTERPRET" in os.environ):
        from llama_perf_example_scheme.kernel import nf4_product

        first, second = weights[0], weights[1] if len(weights) > 1 else None
        out: Tensor = nf4_product(
            x.contiguous(),
            first.codes,
            first.scale,
            first.levels,
            None if second is None else second.codes,
            None if second is None else second.scale,
            None if norm is None else norm.weight,
            0.0 if norm is None else norm.eps,
            residual,
        )
        return out
    if norm is not None:
        x = norm(x)
    products = [_multiplied(x, weight) for weight in weights]
    out = products[0]
    if len(products) > 1:
        out = F.silu(out) * products[1]
    return out if residual is None else out + residual


def _multiplied(x: Tensor, weight: NF4Tensor) -> Tensor:
    if len(x) > 1 or not torch.compiler.is_compiling():
        return F.linear(x, weight.dequantize().to(x.dtype))
    low = weight.levels[(weight.codes & 15).int()] * x[:, 0::2].float()
    high = weight.levels[(weight.codes >> 4).int()] * x[:, 1::2].float()
    scale = weight.scale.float().repeat_interleave(GROUP // 2, dim=1)
    return ((low + high) * scale).sum(-1)[None].to(x.dtype)


@NF4Tensor.implements(aten.linear.default)  # type: ignore[untyped-decorator]
@NF4Tensor.implements_torch_function(F.linear)  # type: ignore[untyped-decorator]
def _linear(_func: Any, _types: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight, *rest = args
    bias = rest[0] if rest else (kwargs or {}).get("bias")
    out = product(x.reshape(-1, x.shape[-1]), [weight])
    out = out.view(*x.shape[:-1], -1)
    return out if bias is None else out + bias


@dataclass(frozen=True)
class NF4Config(AOBaseConfig):  # type: ignore[misc]
    """torchao's config: `quantize_(model, NF4Config())` works without llama-perf."""


@register_quantize_module_handler(NF4Config)  # type: ignore[untyped-decorator]
def _quantized(
    module: nn.Module, _config: NF4Config, *, parameter_name: str = "weight"
) -> nn.Module:
    packed = NF4Tensor.from_float(getattr(module, parameter_name))
    setattr(module, parameter_name, nn.Parameter(packed, requires_grad=False))
    return module
