"""int8wo, fp6 and float8wo: codes of a weight with one scale for each output channel.

s[n] = amax over k of |w[n, k]| / the largest value of a code; the codes are those
nearest to w / s. The scale is in float32 whatever the weight's dtype, and a row of
zeros stays zeros.

    int8wo    integers of -127 to 127
    fp6       e3m2 floats of six bits, up to 28: 0.75 byte a weight
    float8wo  e4m3 floats of eight bits, up to 448, as torchao has them
"""

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
        """Quantize a weight (rows, columns); "-tensor" schemes have one scale."""
        wide = weight.detach().float()
        peak = wide.abs().amax(1)
        if scheme.name.endswith("-tensor"):
            peak = peak.amax().expand_as(peak)
        # No scale is 0 or subnormal: a row of zeros gets codes of zero, and a row of
        # subnormal values rounds to zero.
        scale = (peak / cls.format.largest).clamp(min=torch.finfo(torch.float32).tiny)
        codes = pack(cls.encode(wide / scale.unsqueeze(1)), cls.format.bits)
        return cls(codes, to_lanes(scale), *weight.shape, weight.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """See `PackedTensor.matmul`."""
        return self.format.product(x, self.codes, self.scale, self.rows)

    def packed(self) -> Packed | None:
        """See `PackedTensor.packed`."""
        return self.format.packed(self.rows, self.columns, self.codes, self.scale)

    def dequantized(self) -> Tensor:
        """See `PackedTensor.dequantized`."""
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
