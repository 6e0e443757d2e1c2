"""Codes of a weight with one scale for each output channel.

s[n] = amax over k of |w[n, k]| / the largest value of a code; the codes are those
nearest to w / s. The scale is in float32 whatever the weight's dtype, and a row of
zeros stays zeros.

    int8wo           integers of -127 to 127
    fp6              e3m2 floats of six bits, up to 28: 0.75 byte a weight
    float8wo         e4m3 floats of eight bits, up to 448, as torchao has them
    int8dq           as int8wo; activations in int8 with one scale for each token
    float8dq-row     as float8wo; activations in e4m3 with one scale for each token
    float8dq-tensor  one scale for the whole weight, one for all tokens of a call
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from llama_perf.kernels.float8_dynamic import float8_dynamic
from llama_perf.kernels.int8_dynamic import int8_dynamic, is_int8_rows, takes_int8_rows
from llama_perf.kernels.packing import from_lanes, pack, to_lanes, unpack
from llama_perf.kernels.row_scaled import (
    FLOAT8,
    FP6,
    INT8,
    RowScaled,
    encode_float8,
    encode_fp6,
)
from llama_perf.kernels.weight import Packed
from llama_perf.quantize.packed_tensor import PackedTensor
from llama_perf.rows.schemes import Scheme


class RowScaledWeight(PackedTensor):
    """Words (B, W, 16) of codes and float32 scales (B, 16).

    A subclass says in `format` what a code is, and how to `encode` values of at most
    `format.largest` as int32 codes.
    """

    format: ClassVar[RowScaled]
    encode: "ClassVar[staticmethod[[Tensor], Tensor]]"

    @classmethod
    def from_float(cls, weight: Tensor, scheme: Scheme) -> "RowScaledWeight":
        wide = weight.detach().float()
        peak = wide.abs().amax(1)
        if scheme.name.endswith("-tensor"):
            # One scale.
            peak = peak.amax().expand_as(peak)
        # No scale is 0 or subnormal: a row of zeros gets codes of zero, and a row of
        # subnormal values rounds to zero.
        scale = (peak / cls.format.largest).clamp(min=torch.finfo(torch.float32).tiny)
        codes = pack(cls.encode(wide / scale.unsqueeze(1)), cls.format.bits)
        return cls(codes, to_lanes(scale), *weight.shape, weight.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        return self.format.product(x, self.codes, self.scale, self.rows)

    def packed(self) -> Packed | None:
        return self.format.packed(self.rows, self.columns, self.codes, self.scale)

    def dequantized(self) -> Tensor:
        return self.format.dequantized(self.codes, self.scale, self.rows, self.columns)


class Int8Weight(RowScaledWeight, families=("int8wo",)):
    """int8 codes, as unsigned bytes of the words."""

    format = INT8
    encode = staticmethod(lambda scaled: torch.round(scaled).clamp(-127, 127).int())


class Fp6Weight(RowScaledWeight, families=("fp6",)):
    """fp6 codes, in planes of 4 and 2 bits."""

    format = FP6
    encode = staticmethod(encode_fp6)


class Float8Weight(RowScaledWeight, families=("float8wo",)):
    """float8 codes, as bytes of the words."""

    format = FLOAT8
    encode = staticmethod(encode_float8)


class Int8DynamicWeight(Int8Weight, families=("int8dq",)):
    """int8 codes and float32 scales (B, 16).

    The codes are words (B, W, 16), but int8 (rows, columns) on a CPU that multiplies
    them as they are; moving the tensor to another device lays them out anew.
    """

    def laid_out_for(self, device: torch.device) -> "Int8DynamicWeight":
        codes, as_rows = self.codes, takes_int8_rows(device, self.columns)
        if as_rows == is_int8_rows(codes):
            return self
        if as_rows:
            unpacked = unpack(codes, INT8.bits, self.columns).to(torch.int8)
            codes = from_lanes(unpacked, self.rows).contiguous()
        else:
            # `pack` masks the bytes, since a word has no room for a sign.
            codes = pack(codes, INT8.bits)
        attributes = (self.rows, self.columns, self.activation_dtype)
        return Int8DynamicWeight(codes, self.scale, *attributes)

    def matmul(self, x: Tensor) -> Tensor:
        return int8_dynamic(x, self.codes, self.scale, self.rows)

    def packed(self) -> Packed | None:
        if is_int8_rows(self.codes):
            return None
        packed = INT8.packed(self.rows, self.columns, self.codes, self.scale)
        return replace(packed, dynamic=True)

    def dequantized(self) -> Tensor:
        if is_int8_rows(self.codes):
            return self.codes.float() * self.scale.flatten()[: self.rows].unsqueeze(1)
        return super().dequantized()


class Float8DynamicWeight(Float8Weight, families=("float8dq-row", "float8dq-tensor")):
    """float8 words (B, W, 16) and float32 scales (B, 16), all alike if per tensor."""

    tensor_attribute_names: ClassVar = [
        "granularity",
        *PackedTensor.tensor_attribute_names,
    ]
    granularity: str

    @classmethod
    def from_float(cls, weight: Tensor, scheme: Scheme) -> "Float8DynamicWeight":
        packed = Float8Weight.from_float(weight, scheme)
        granularity = scheme.name.removeprefix("float8dq-")
        return cls(packed.codes, packed.scale, granularity, *weight.shape, weight.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        per_tensor = self.granularity == "tensor"
        return float8_dynamic(
            x, self.codes, self.scale, self.rows, per_tensor=per_tensor
        )

    # The fused kernels do not round activations to float8.
    packed = PackedTensor.packed
