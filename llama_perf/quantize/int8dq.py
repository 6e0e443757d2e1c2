"""int8dq: weights as in int8wo, activations in int8 with one scale for each token."""

from dataclasses import replace

import torch
from torch import Tensor

from llama_perf.kernels.int8_dynamic import int8_dynamic, is_int8_rows, takes_int8_rows
from llama_perf.kernels.packing import from_lanes, pack, unpack
from llama_perf.kernels.row_scaled import INT8
from llama_perf.kernels.weight import Packed
from llama_perf.quantize.row_scaled import Int8Weight
from llama_perf.rows.schemes import Scheme


class Int8DynamicWeight(Int8Weight, families=("int8dq",)):
    """int8 codes and float32 scales (B, 16).

    The codes are words (B, W, 16), but int8 (rows, columns) on a CPU that multiplies
    them as they are; moving the tensor to another device lays them out anew.
    """

    @classmethod
    def from_float(cls, weight: Tensor, scheme: Scheme) -> "Int8DynamicWeight":
        """See `PackedTensor.from_float`."""
        return super().from_float(weight, scheme).laid_out_for(weight.device)

    def laid_out_for(self, device: torch.device) -> "Int8DynamicWeight":
        """See `PackedTensor.laid_out_for`."""
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
        """See `PackedTensor.matmul`."""
        return int8_dynamic(x, self.codes, self.scale, self.rows)

    def packed(self) -> Packed | None:
        """See `PackedTensor.packed`."""
        if is_int8_rows(self.codes):
            return None
        packed = INT8.packed(self.rows, self.columns, self.codes, self.scale)
        return replace(packed, dynamic=True)

    def dequantized(self) -> Tensor:
        """See `PackedTensor.dequantized`."""
        if is_int8_rows(self.codes):
            return self.codes.float() * self.scale.flatten()[: self.rows].unsqueeze(1)
        return super().dequantized()
