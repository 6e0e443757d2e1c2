"""float8dq: weights and activations as e4m3 floats of eight bits.

`float8dq-row`: weights as in float8wo, one scale for each token. `float8dq-tensor`: one
scale for the whole weight, one for all tokens of a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llama_perf.errors import SpecError
from llama_perf.kernels.float8_dynamic import float8_dynamic
from llama_perf.kernels.row_scaled import FLOAT8
from llama_perf.quantize.packed_tensor import NativeConfig, PackedTensor
from llama_perf.quantize.row_scaled import float8_rows
from llama_perf.rows.schemes import Scheme

GRANULARITIES = ("row", "tensor")


class Float8DynamicWeight(PackedTensor):
    """float8 words (B, W, 16) and float32 scales (B, 16), all alike if per tensor."""

    tensor_data_names: ClassVar = ["codes", "scale"]
    tensor_attribute_names: ClassVar = [
        "granularity",
        *PackedTensor.tensor_attribute_names,
    ]
    codes: Tensor
    scale: Tensor
    granularity: str

    @classmethod
    def from_float(cls, weight: Tensor, granularity: str) -> Float8DynamicWeight:
        """Quantize a weight (rows, columns)."""
        codes, scale = float8_rows(weight, per_tensor=granularity == "tensor")
        return cls(codes, scale, granularity, *weight.shape, weight.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """See `PackedTensor.matmul`."""
        per_tensor = self.granularity == "tensor"
        return float8_dynamic(
            x, self.codes, self.scale, self.rows, per_tensor=per_tensor
        )

    def dequantized(self) -> Tensor:
        """See `PackedTensor.dequantized`."""
        return FLOAT8.dequantized(self.codes, self.scale, self.rows, self.columns)


@dataclass(frozen=True)
class Float8DynamicConfig(NativeConfig, families=("float8dq-row", "float8dq-tensor")):
    """Config of the native float8dq for torchao's `quantize_`."""

    granularity: str = "row"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            allowed = f"allowed: {', '.join(GRANULARITIES)}"
            raise SpecError("granularity", self.granularity, allowed)

    @property
    def scheme(self) -> str:
        """See `NativeConfig.scheme`."""
        return f"float8dq-{self.granularity}"

    @classmethod
    def build(
        cls, scheme: Scheme, _device: torch.device, _dtype: torch.dtype
    ) -> Float8DynamicConfig:
        """See `NativeConfig.build`."""
        return cls(granularity=scheme.name.removeprefix("float8dq-"))

    def pack(self, weight: Tensor) -> Float8DynamicWeight:
        """See `NativeConfig.pack`."""
        return Float8DynamicWeight.from_float(weight, self.granularity)
