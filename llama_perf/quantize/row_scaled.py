"""int8wo, fp6 and float8wo: codes of a weight with one scale for each output channel.

s[n] = amax over k of |w[n, k]| / the largest value of a code; the codes are those
nearest to w / s. The scale is in float32 whatever the weight's dtype, and a row of
zeros stays zeros.

    int8wo    integers of -127 to 127
    fp6       e3m2 floats of six bits, up to 28: 0.75 byte a weight
    float8wo  e4m3 floats of eight bits, up to 448, as torchao has them
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.kernels.row_scaled import (
    FLOAT8,
    FP6,
    INT8,
    RowScaled,
    encode_float8,
    encode_fp6,
)
from llama_perf.kernels.weight import Packed
from llama_perf.quantize.packed_tensor import NativeConfig, PackedTensor


class RowScaledWeight(PackedTensor):
    """Words (B, W, 16) of codes and float32 scales (B, 16).

    A subclass says in `format` what a code is.
    """

    tensor_data_names: ClassVar = ["codes", "scale"]
    format: ClassVar[RowScaled]
    codes: Tensor
    scale: Tensor

    def matmul(self, x: Tensor) -> Tensor:
        """See `PackedTensor.matmul`."""
        return self.format.product(x, self.codes, self.scale, self.rows)

    def packed(self) -> Packed | None:
        """See `PackedTensor.packed`."""
        return self.format.packed(self.rows, self.columns, self.codes, self.scale)

    def dequantized(self) -> Tensor:
        """See `PackedTensor.dequantized`."""
        return self.format.dequantized(self.codes, self.scale, self.rows, self.columns)


class Int8Weight(RowScaledWeight):
    """int8 codes, as unsigned bytes of the words."""

    format: ClassVar = INT8

    @classmethod
    def from_float(cls, weight: Tensor) -> Int8Weight:
        """Quantize a weight (rows, columns)."""
        codes, scale = int8_rows(weight)
        words = pack(codes.to(torch.int32), INT8.bits)
        return cls(words, scale, *weight.shape, weight.dtype)


class Fp6Weight(RowScaledWeight):
    """fp6 codes, in planes of 4 and 2 bits."""

    format: ClassVar = FP6

    @classmethod
    def from_float(cls, weight: Tensor) -> Fp6Weight:
        """Quantize a weight (rows, columns)."""
        scaled, scale = scaled_rows(weight, largest=FP6.largest)
        codes = pack(encode_fp6(scaled), FP6.bits)
        return cls(codes, to_lanes(scale), *weight.shape, weight.dtype)


class Float8Weight(RowScaledWeight):
    """float8 codes, as bytes of the words."""

    format: ClassVar = FLOAT8

    @classmethod
    def from_float(cls, weight: Tensor) -> Float8Weight:
        """Quantize a weight (rows, columns)."""
        return cls(*float8_rows(weight), *weight.shape, weight.dtype)


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (N, K) and float32 scales (B, 16) of a weight (N, K)."""
    scaled, scale = scaled_rows(weight, largest=INT8.largest)
    codes = torch.round(scaled).clamp(-INT8.largest, INT8.largest).to(torch.int8)
    return codes, to_lanes(scale)


def float8_rows(weight: Tensor, *, per_tensor: bool = False) -> tuple[Tensor, Tensor]:
    """float8 words (B, W, 16) and float32 scales (B, 16) of a weight (N, K)."""
    scaled, scale = scaled_rows(weight, largest=FLOAT8.largest, per_tensor=per_tensor)
    return pack(encode_float8(scaled), FLOAT8.bits), to_lanes(scale)


def scaled_rows(
    weight: Tensor, *, largest: float, per_tensor: bool = False
) -> tuple[Tensor, Tensor]:
    """A weight (N, K) over its scales, and these: float32 (N, K) and (N,).

    The largest magnitude of a row becomes `largest`. With `per_tensor` every row has
    the scale of the whole weight.
    """
    wide = weight.detach().float()
    peak = wide.abs().amax(1)
    if per_tensor:
        peak = peak.amax().expand_as(peak)
    # No scale is 0 or subnormal: a row of zeros gets codes of zero, and a row of
    # subnormal values rounds to zero.
    scale = (peak / largest).clamp(min=torch.finfo(torch.float32).tiny)
    return wide / scale.unsqueeze(1), scale


@dataclass(frozen=True)
class Int8WeightConfig(NativeConfig, families=("int8wo",)):
    """Config of the native int8wo for torchao's `quantize_`."""

    scheme: ClassVar = "int8wo"

    def pack(self, weight: Tensor) -> Int8Weight:
        """See `NativeConfig.pack`."""
        return Int8Weight.from_float(weight)


@dataclass(frozen=True)
class Fp6WeightConfig(NativeConfig, families=("fp6",)):
    """Config of the native fp6 for torchao's `quantize_`."""

    scheme: ClassVar = "fp6"

    def pack(self, weight: Tensor) -> Fp6Weight:
        """See `NativeConfig.pack`."""
        return Fp6Weight.from_float(weight)


@dataclass(frozen=True)
class Float8WeightConfig(NativeConfig, families=("float8wo",)):
    """Config of the native float8wo for torchao's `quantize_`."""

    scheme: ClassVar = "float8wo"

    def pack(self, weight: Tensor) -> Float8Weight:
        """See `NativeConfig.pack`."""
        return Float8Weight.from_float(weight)
